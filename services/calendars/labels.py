"""The few words that a calendar adds to what people wrote, in each language."""

from collections.abc import Mapping
from dataclasses import dataclass

from services.school.models import Locale, TeachingAffected

__all__ = ["LABELS", "Labels"]


@dataclass(frozen=True, slots=True)
class Labels:
    """Words of one language. What stands before a text brings its own colon and spaces: French puts one before the colon."""

    untitled: str
    cancelled: str
    teaching_affected: str
    affected: Mapping[TeachingAffected, str]
    classes: str


LABELS: Mapping[Locale, Labels] = {
    Locale.GERMAN: Labels(
        untitled="(ohne Titel)",
        cancelled="Abgesagt: ",
        teaching_affected="Unterricht betroffen: ",
        affected={TeachingAffected.YES: "ja", TeachingAffected.PARTIAL: "teilweise", TeachingAffected.NO: "nein"},
        classes="Klassen: ",
    ),
    Locale.FRENCH: Labels(
        untitled="(sans titre)",
        cancelled="Annulé : ",
        teaching_affected="Enseignement touché : ",
        affected={TeachingAffected.YES: "oui", TeachingAffected.PARTIAL: "en partie", TeachingAffected.NO: "non"},
        classes="Classes : ",
    ),
    Locale.ENGLISH: Labels(
        untitled="(untitled)",
        cancelled="Cancelled: ",
        teaching_affected="Teaching affected: ",
        affected={TeachingAffected.YES: "yes", TeachingAffected.PARTIAL: "partly", TeachingAffected.NO: "no"},
        classes="Classes: ",
    ),
}
