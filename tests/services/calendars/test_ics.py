import re
import time
from dataclasses import fields, replace
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import icalendar
import pytest
import vobject
from hypothesis import given, settings, strategies as st
from ical.calendar_stream import IcsCalendarStream
from icalendar import Calendar, Event, vDuration, vText

from services.calendars.ics import (
    CALENDAR_FOOT,
    MOST_BYTES,
    EventContent,
    InvalidEvent,
    Repeats,
    digest_source,
    find_words,
    join,
    render,
    render_head,
    stamp,
)
from services.calendars.vtimezone import make_vtimezone
from services.school.models import TeachingAffected
from services.school.texts import LONGEST_DESCRIPTION, LONGEST_LINE, clean, is_blank, shorten
from services.translation import Locale
from tests.lint import lint

GOLDEN = Path(__file__).parents[2] / "golden" / "ics"
ZURICH = ZoneInfo("Europe/Zurich")
NOW = datetime(2025, 3, 1, 6, 30, tzinfo=UTC)

LESSON = EventContent(
    uid="6f1b1b1e-0000-4000-8000-000000000001@school.example",
    title="Zähneputzen, Teil 1; mit Frau Müller",
    description="Bitte Bürste mitbringen.\nTreffpunkt: Aula",
    location="Aula, 1. Stock",
    starts=datetime(2025, 3, 28, 7, 10, tzinfo=UTC),
    ends=datetime(2025, 3, 28, 7, 55, tzinfo=UTC),
    cancelled=False,
    teaching_affected=TeachingAffected.PARTIAL,
    classes=("27Ga", "27Gb", "Sport, Bewegung"),
)

GOLDEN_EVENTS = {
    "lesson": LESSON,
    "trip": replace(
        LESSON,
        uid="6f1b1b1e-0000-4000-8000-000000000002@school.example",
        title="Studienreise 🏔️ nach Genève",
        description="",
        location="",
        starts=date(2025, 3, 28),
        ends=date(2025, 4, 2),
        teaching_affected=TeachingAffected.YES,
    ),
    "cancelled": replace(
        LESSON, uid="6f1b1b1e-0000-4000-8000-000000000003@school.example", cancelled=True
    ),
    "deadline": replace(
        LESSON,
        uid="6f1b1b1e-0000-4000-8000-000000000004@school.example",
        title="",
        location="",
        ends=LESSON.starts,
        teaching_affected=TeachingAffected.NO,
        classes=(),
    ),
    "scripts": replace(
        LESSON,
        uid="6f1b1b1e-0000-4000-8000-000000000005@school.example",
        title="שיעור עברית \\ 日本語 👩‍👩‍👧‍👦",
        description="Ein Pfad: C:\\Netz\\neu\\,\x00\x1b[31m\ttab\r\nZeile\u2028Zeile \ud83d Ende. "
        + "Ä" * 80,
        starts=datetime(2025, 3, 30, 1, 30, tzinfo=ZURICH),
        ends=datetime(2025, 3, 30, 3, 30, tzinfo=ZURICH),
        classes=("27Ga",),
    ),
    "invisible": replace(
        LESSON,
        uid="6f1b1b1e-0000-4000-8000-000000000006@school.example",
        title="\u200b\u2060 \u3164",
        description="\ufeff\u200b",
        location="\u2800",
        classes=("27Ga", "\u200b"),
    ),
    "reordered": replace(
        LESSON,
        uid="6f1b1b1e-0000-4000-8000-000000000007@school.example",
        title="\u202eelödnafnE",
        description="\u2067Klasse\u2069 \u202bאבג\u202c, שלום \u200f(abc)",
        cancelled=True,
    ),
    "joined": replace(
        LESSON,
        uid="6f1b1b1e-0000-4000-8000-000000000008@school.example",
        title="Sport\x85Tag\x0bAula",
        description="eins\x85zwei\x0bdrei\x0cvier\x1ffünf",
        location="Aula\x851. Stock",
    ),
    "accents": replace(
        LESSON,
        uid="6f1b1b1e-0000-4000-8000-000000000009@school.example",
        title="Z" + "\u0301\u0327" * 15_000 + "algo",
    ),
    "long": replace(
        LESSON,
        uid="6f1b1b1e-0000-4000-8000-000000000010@school.example",
        title="Besprechung der Abschlussarbeiten " * 20,
        description="Zeile mit Umläuten, Kommas und 😀.\n" * 2_800,
        location="Aula, 1. Stock; " * 20,
    ),
}

instants = st.datetimes(
    datetime(1970, 1, 2),  # noqa: DTZ001 - hypothesis adds the zone
    datetime(2200, 1, 1),  # noqa: DTZ001
    timezones=st.sampled_from([UTC, ZURICH, ZoneInfo("Asia/Gaza")]),
)
anything = st.characters(codec=None)
texts = st.one_of(
    st.text(anything, max_size=200),
    st.text(st.sampled_from("\\nN,;:\"\r\n\t \x00\x85\u2028\ud800\ufeffäé€😀א^'"), max_size=200),
)


@st.composite
def contents(draw: st.DrawFn) -> EventContent:
    if draw(st.booleans()):
        first = draw(instants)
        spans: Any = (
            first,
            first.astimezone(UTC) + draw(st.timedeltas(timedelta(0), timedelta(days=400))),
        )
    else:
        day = draw(st.dates(date(1970, 1, 1), date(2200, 1, 1)))
        spans = (day, day + timedelta(days=draw(st.integers(0, 400))))
    return EventContent(
        uid=draw(st.uuids().map(lambda uid: f"{uid}@school.example")),
        title=draw(texts),
        description=draw(texts),
        location=draw(texts),
        starts=spans[0],
        ends=spans[1],
        cancelled=draw(st.booleans()),
        teaching_affected=draw(st.sampled_from(TeachingAffected)),
        classes=tuple(sorted(draw(st.lists(texts, max_size=3)))),
    )


def feed(*events: EventContent, locale: Locale = Locale.GERMAN, name: str = "Feed") -> bytes:
    bodies = [stamp(render(event).bodies[locale], sequence=2, modified_at=NOW) for event in events]
    return render_head(name, ZURICH) + b"".join(bodies) + CALENDAR_FOOT


def visible(text: str, longest: int) -> str:
    return "" if is_blank(text) else shorten(text, longest)


def one_line(text: str) -> str:
    return visible(" ".join(clean(text).split()), LONGEST_LINE)


def expected_texts(content: EventContent, locale: Locale) -> dict[str, str]:
    """Say what a subscriber is to read."""
    said = find_words(locale)
    title = one_line(content.title) or said.untitled
    classes = [name for each in content.classes if (name := one_line(each))]
    lines = [said.affected[content.teaching_affected]]
    lines += [said.classes % {"names": ", ".join(classes)}] if classes else []
    description = visible(clean(content.description).strip(), LONGEST_DESCRIPTION)
    lines += ["", description] if description else []
    return {
        "SUMMARY": said.cancelled % {"title": title} if content.cancelled else title,
        "DESCRIPTION": "\n".join(lines),
        "LOCATION": visible(clean(content.location).strip(), LONGEST_LINE),
        "CATEGORIES": ",".join(classes),
    }


def expected_times(content: EventContent) -> tuple[date, date]:
    if not isinstance(content.starts, datetime) or not isinstance(content.ends, datetime):
        return content.starts, content.ends + timedelta(days=1)
    starts, ends = (
        moment.astimezone(UTC).replace(microsecond=0) for moment in (content.starts, content.ends)
    )
    return starts, starts if ends.replace(second=0) == starts.replace(second=0) else ends


def by_icalendar(content: EventContent, locale: Locale) -> Event:
    """Build the event as icalendar's manual says, one property after the other."""
    texts, (starts, ends), event = expected_texts(content, locale), expected_times(content), Event()
    is_timed = isinstance(starts, datetime)
    event.add("dtstamp", NOW)
    event.add("last-modified", NOW)
    event.add("sequence", 2)
    event.add("uid", content.uid)
    event.add("dtstart", starts)
    if ends != starts:
        event.add("dtend", ends)
    event.add("summary", texts["SUMMARY"])
    event.add("description", texts["DESCRIPTION"])
    if texts["LOCATION"]:
        event.add("location", texts["LOCATION"])
    if texts["CATEGORIES"]:
        event.add(
            "categories",
            [name for each in content.classes if (name := one_line(each))],
        )
    event.add("status", "CANCELLED" if content.cancelled else "CONFIRMED")
    event.add("transp", "OPAQUE" if is_timed and not content.cancelled else "TRANSPARENT")
    return event


def calendar_by_icalendar(name: str, *events: Event) -> Calendar:
    calendar = Calendar()
    calendar.add("version", "2.0")
    calendar.add("prodid", "-//Nightshift//Nightshift//EN")
    calendar.add("calscale", "GREGORIAN")
    calendar.add(
        "refresh-interval", vDuration(timedelta(hours=1)), parameters={"VALUE": "DURATION"}
    )
    calendar.add("x-published-ttl", vDuration(timedelta(hours=1)))
    calendar.add("name", vText(name))
    calendar.add("x-wr-calname", vText(name))
    calendar.add("x-wr-timezone", vText(ZURICH.key))
    calendar.add_component(make_vtimezone(ZURICH))
    for event in events:
        calendar.add_component(event)
    return calendar


@given(events=st.lists(contents(), max_size=3), locale=st.sampled_from(Locale), name=texts)
@settings(deadline=None)
def test_a_feed_is_what_icalendar_writes_itself(
    events: list[EventContent], locale: Locale, name: str
) -> None:
    # icalendar alone would lose the letter of a written \N; ours does not, as
    # test_render_keeps_a_written_backslash_n shows.
    def cleaned(text: str) -> str:
        return re.sub(r"\\N", r"\\n", clean(text))

    events = [
        replace(
            each,
            title=cleaned(each.title),
            description=cleaned(each.description),
            location=cleaned(each.location),
            classes=tuple(map(cleaned, each.classes)),
        )
        for each in events
    ]
    name = one_line(cleaned(name))

    built = calendar_by_icalendar(name, *(by_icalendar(each, locale) for each in events))

    assert feed(*events, locale=locale, name=name) == built.to_ical(sorted=False)


@given(content=contents(), locale=st.sampled_from(Locale))
@settings(deadline=None)
def test_a_feed_reads_back_as_it_was_given(content: EventContent, locale: Locale) -> None:
    data = feed(content, locale=locale)

    calendar = Calendar.from_ical(data)
    assert isinstance(calendar, Calendar)
    (event,) = calendar.walk("VEVENT")
    starts, ends = expected_times(content)
    assert event["UID"] == content.uid
    assert {name: str(event.get(name, "")) for name in ("SUMMARY", "DESCRIPTION", "LOCATION")} == {
        name: text for name, text in expected_texts(content, locale).items() if name != "CATEGORIES"
    }
    assert (
        ",".join(event["CATEGORIES"].cats if "CATEGORIES" in event else [])
        == expected_texts(content, locale)["CATEGORIES"]
    )
    assert (event["DTSTART"].dt, event["DTEND"].dt if "DTEND" in event else starts) == (
        starts,
        ends,
    )
    assert (event["DTSTAMP"].dt, event["LAST-MODIFIED"].dt, event["SEQUENCE"]) == (NOW, NOW, 2)
    assert lint(data) == []


@given(st.lists(contents(), max_size=3), st.sampled_from(Locale))
@settings(deadline=None, max_examples=30)
def test_other_parsers_read_a_feed(events: list[EventContent], locale: Locale) -> None:
    data = feed(*events, locale=locale).decode()

    strict = IcsCalendarStream.calendar_from_ics(data)
    old = vobject.readOne(data)

    assert [event.summary for event in strict.events] == [
        expected_texts(each, locale)["SUMMARY"] for each in events
    ]
    assert old.validate(raiseException=True)
    assert [event.summary.value for event in old.contents.get("vevent", [])] == [
        expected_texts(each, locale)["SUMMARY"] for each in events
    ]


@pytest.mark.parametrize("locale", Locale)
@pytest.mark.parametrize("name", GOLDEN_EVENTS)
def test_render_writes_the_golden_files(name: str, locale: Locale) -> None:
    data = feed(GOLDEN_EVENTS[name], locale=locale, name=f"Klasse 27Ga, {name}")

    assert data == (GOLDEN / f"{name}.{locale}.ics").read_bytes()
    assert lint(data) == []


def test_golden_files_are_all_in_use() -> None:
    rendered = [f"{name}.{locale}.ics" for name in GOLDEN_EVENTS for locale in Locale]
    assert sorted(path.name for path in GOLDEN.iterdir()) == sorted(["full.de.ics", *rendered])


def test_join_leaves_out_the_last_events_that_have_no_room() -> None:
    bodies = [
        stamp(render(event).bodies[Locale.GERMAN], sequence=2, modified_at=NOW)
        for event in (LESSON, *(GOLDEN_EVENTS[name] for name in ("joined", "deadline", "trip")))
    ]

    data, count = join(render_head("Klasse 27Ga, voll", ZURICH), bodies, longest=1_800)

    assert data == (GOLDEN / "full.de.ics").read_bytes()
    assert count == 2
    assert len(data) <= 1_800
    assert lint(data) == []


def test_join_fills_a_feed_to_the_last_byte() -> None:
    head, bodies = render_head("", ZURICH), [b"x" * 100] * 3
    whole, _ = join(head, bodies)

    assert [join(head, bodies, longest=len(whole) - less)[1] for less in (0, 1, 101)] == [3, 2, 1]
    assert len(whole) < MOST_BYTES <= 2**20


def test_render_keeps_a_written_backslash_n() -> None:
    content = replace(LESSON, title=r"C:\Netz\neu \\N", classes=(r"\N", "a,b"))

    (event,) = Calendar.from_ical(feed(content)).walk("VEVENT")

    assert event["SUMMARY"] == r"C:\Netz\neu \\N"
    assert event["CATEGORIES"].cats == [r"\N", "a,b"]


def test_render_shortens_texts_that_clients_would_cut() -> None:
    (event,) = Calendar.from_ical(feed(GOLDEN_EVENTS["long"])).walk("VEVENT")

    assert len(event["SUMMARY"]) <= LONGEST_LINE >= len(event["LOCATION"])
    assert LONGEST_DESCRIPTION < len(event["DESCRIPTION"]) < LONGEST_DESCRIPTION + 100
    assert [event[name][-1] for name in ("SUMMARY", "LOCATION", "DESCRIPTION")] == ["…"] * 3


def test_render_of_sixty_kilobytes_of_accents_takes_no_time() -> None:
    began = time.process_time()  # other processes do not count

    render(GOLDEN_EVENTS["accents"])

    assert time.process_time() - began < 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ends": LESSON.starts - timedelta(seconds=1)}, "before it starts"),
        ({"starts": date(2025, 3, 2), "ends": date(2025, 3, 1)}, "before it starts"),
        (
            {"starts": datetime(2025, 3, 1, 8)},  # noqa: DTZ001 - that is what is wrong
            "neither in UTC nor in a named time zone",
        ),
        (
            {"starts": datetime(2025, 3, 1, 8, tzinfo=timezone(timedelta(hours=1)))},
            "neither in UTC nor in a named time zone",
        ),
        ({"starts": date(2025, 3, 1)}, "two instants or two dates"),
        ({"ends": date(2025, 3, 29)}, "two instants or two dates"),
        ({"starts": date(2025, 3, 1), "ends": date.max}, "edge of the calendar"),
        ({"starts": datetime(1, 1, 1, tzinfo=ZoneInfo("Asia/Tokyo"))}, "edge of the calendar"),
        ({"uid": "\x00 "}, "no uid"),
    ],
)
def test_render_refuses_what_no_calendar_can_show(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidEvent, match=message):
        render(replace(LESSON, **changes))


def test_render_compares_instants_not_wall_clocks() -> None:
    # In the night when the clocks go back, 02:15 comes after the first 02:30.
    starts, ends = (
        datetime(2025, 10, 26, 2, 30, tzinfo=ZURICH),
        datetime(2025, 10, 26, 2, 15, fold=1, tzinfo=ZURICH),
    )

    (body,) = render(replace(LESSON, starts=starts, ends=ends)).bodies[Locale.GERMAN]

    assert b"DTSTART:20251026T003000Z\r\nDTEND:20251026T011500Z\r\n" in body


@pytest.mark.parametrize(
    ("starts", "seconds", "has_end"),
    [(0, 0.9, False), (0, 1, False), (0, 59.9, False), (0, 60, True), (59, 1, True)],
)
def test_render_leaves_dtend_out_of_an_event_within_one_minute(
    starts: int, seconds: float, has_end: bool
) -> None:
    begin = LESSON.starts + timedelta(seconds=starts)

    (body,) = render(replace(LESSON, starts=begin, ends=begin + timedelta(seconds=seconds))).bodies[
        Locale.GERMAN
    ]

    assert (b"DTEND" in body) == has_end


def test_render_digests_every_locale() -> None:
    same, other = render(replace(LESSON)), render(replace(LESSON, location="Turnhalle"))

    assert render(LESSON) == same
    assert render(LESSON).digest != other.digest
    assert len(other.digest) == 16


@pytest.mark.parametrize(
    "changes",
    [
        {"uid": "x@school.example"},
        {"title": "x"},
        {"description": "\ud800"},
        {"location": "x"},
        {"starts": datetime(2025, 3, 28, 7, 11, tzinfo=UTC)},
        {"ends": datetime(2025, 3, 28, 7, 56, tzinfo=UTC)},
        {"cancelled": True},
        {"teaching_affected": TeachingAffected.YES},
        {"classes": ("27Ga, 27Gb", "Sport, Bewegung")},
        {"repeats": Repeats("FREQ=DAILY;COUNT=2", (), ZURICH)},
    ],
    ids=[field.name for field in fields(EventContent)],
)
def test_source_digest_covers_every_field(changes: dict[str, Any]) -> None:
    assert digest_source(LESSON) == digest_source(replace(LESSON))
    assert len(digest_source(LESSON)) == 16
    assert digest_source(replace(LESSON, **changes)) != digest_source(LESSON)


def test_stamp_drops_fractions_of_a_second() -> None:
    modified_at = datetime(2025, 3, 1, 7, 30, 0, 999_999, tzinfo=ZURICH)

    assert stamp((b"UID:x\r\n",), sequence=12, modified_at=modified_at) == (
        b"BEGIN:VEVENT\r\nDTSTAMP:20250301T063000Z\r\nLAST-MODIFIED:20250301T063000Z\r\nSEQUENCE:12\r\nUID:x\r\nEND:VEVENT\r\n"
    )


def test_an_empty_feed_is_valid() -> None:
    data = feed(name="Müller,\nHans; \x00Lehrer")

    calendar = Calendar.from_ical(data)
    assert isinstance(calendar, Calendar)
    assert (calendar["NAME"], calendar["X-WR-CALNAME"]) == (
        r"Müller\, Hans\; Lehrer",
        r"Müller\, Hans\; Lehrer",
    )
    assert [component.name for component in calendar.subcomponents] == ["VTIMEZONE"]
    assert lint(data) == []
    assert IcsCalendarStream.calendar_from_ics(data.decode()).events == []
    assert vobject.readOne(data.decode()).validate(raiseException=True)


def test_a_feed_tells_nothing_of_icalendar() -> None:
    assert icalendar.__version__.encode() not in feed(LESSON)
