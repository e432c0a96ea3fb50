"""libical, the parser of GNOME, KDE and many servers: an extra that the system's packages have."""

import ctypes
import ctypes.util
import re
from collections.abc import Sequence
from typing import Any

import pytest


class Pointer(ctypes.c_void_p):
    """One that stays a pointer: as an int, ctypes would hand it back cut to 32 bits."""


class Libical:
    """Read calendars as libical does."""

    def __init__(self, path: str) -> None:
        self._c = ctypes.CDLL(path)
        self._event_kind = self._call("icalcomponent_string_to_kind", ctypes.c_int, b"VEVENT")

    def _call(self, name: str, result: Any, *arguments: Any) -> Any:
        function = getattr(self._c, name)
        function.restype = result
        return function(*arguments)

    def _value(self, component: Pointer, name: str) -> str:
        kind = self._call("icalproperty_string_to_kind", ctypes.c_int, name.encode())
        found = self._call("icalcomponent_get_first_property", Pointer, component, kind)
        if not found:
            return ""
        if name in ("SUMMARY", "DESCRIPTION"):
            text = f"icalcomponent_get_{name.lower()}"  # As a text, and not as it is written.
            return str(self._call(text, ctypes.c_char_p, component).decode())
        value = self._call("icalproperty_get_value_as_string", ctypes.c_char_p, found)
        return str(value.decode())

    def read(self, data: bytes, names: Sequence[str]) -> tuple[str, list[tuple[str, ...]]]:
        """Return a calendar's METHOD, and these properties of each event; "" for one it lacks.

        Raises ValueError with what libical complains of, the rules of iTIP's methods included.
        """
        calendar = self._call("icalparser_parse_string", Pointer, data)
        try:
            # It answers whether it could check; what it found are properties that it adds.
            self._call("icalrestriction_check", ctypes.c_int, calendar)
            if self._call("icalcomponent_count_errors", ctypes.c_int, calendar):
                shown = self._call("icalcomponent_as_ical_string", ctypes.c_char_p, calendar)
                text = shown.decode().replace("\r\n ", "")
                raise ValueError("\n".join(re.findall(r"X-LIC-ERROR.*", text)))
            events = []
            first = "icalcomponent_get_first_component"
            event = self._call(first, Pointer, calendar, self._event_kind)
            while event:
                events.append(tuple(self._value(event, name) for name in names))
                following = "icalcomponent_get_next_component"
                event = self._call(following, Pointer, calendar, self._event_kind)
            return self._value(calendar, "METHOD"), events
        finally:
            self._call("icalcomponent_free", None, calendar)


def require_libical() -> Libical:
    """Return libical, or skip the test loudly."""
    path = ctypes.util.find_library("ical")
    if path is None:
        pytest.skip("LIBICAL IS NOT INSTALLED: apt-get install libical3")
    return Libical(path)
