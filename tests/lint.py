"""A lint of a feed's bytes: what clients fail on, and parsers forgive.

It shares no code with the renderer that it checks.
"""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["lint"]

_DAY, _TIME = r"\d{4}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])", r"([01]\d|2[0-3])[0-5]\d([0-5]\d|60)"
_UTC, _WHEN = f"{_DAY}T{_TIME}Z", f"{_DAY}(T{_TIME}Z?)?"
_DURATION = r"P(\d+W|(\d+D)?(T(?=\d)(\d+H)?(\d+M)?(\d+S)?)?)(?<!P)"
_OFFSET = r"\+0000|[+-](?!0000)\d\d[0-5]\d([0-5]\d)?"
_TEXT = r"(?:[^\\;,]|\\[\\;,nN])*"
_ONSETS = ("STANDARD", "DAYLIGHT")
_REQUIRED = {
    "VCALENDAR": ("VERSION", "PRODID"),
    "VEVENT": ("UID", "DTSTAMP", "DTSTART"),
    "VTIMEZONE": ("TZID",),
    **dict.fromkeys(_ONSETS, ("DTSTART", "TZOFFSETFROM", "TZOFFSETTO")),
}
_FORBIDDEN = {
    ("VCALENDAR", "METHOD"): "a feed is no invitation, and some clients refuse it",
    ("VCALENDAR", "UID"): "clients take the whole feed for one item",
    **dict.fromkeys(
        ((onset, "RDATE") for onset in _ONSETS), "Outlook shifts events, an RRULE is needed"
    ),
}
# Every other property once in a component.
_REPEATABLE = {
    "ATTACH",
    "ATTENDEE",
    "CATEGORIES",
    "COMMENT",
    "CONTACT",
    "EXDATE",
    "RDATE",
    "RELATED-TO",
    "RESOURCES",
    "TZNAME",
}
# What may stand in what; no VALARM, which subscribed calendars ignore or strip.
_CHILDREN = {"": ("VCALENDAR",), "VCALENDAR": ("VEVENT", "VTIMEZONE"), "VTIMEZONE": _ONSETS}
_VALUES = {
    "VERSION": r"2\.0",
    "CALSCALE": "GREGORIAN",
    "SEQUENCE": r"\d+",
    "STATUS": "TENTATIVE|CONFIRMED|CANCELLED",
    "TRANSP": "OPAQUE|TRANSPARENT",
    "RRULE": r"(.*;)?FREQ=(DAILY|WEEKLY|MONTHLY|YEARLY)(;.*)?",
    "CATEGORIES": f"{_TEXT}(,{_TEXT})*",
    **dict.fromkeys(("REFRESH-INTERVAL", "X-PUBLISHED-TTL", "DURATION"), _DURATION),
    **dict.fromkeys(("TZOFFSETFROM", "TZOFFSETTO"), _OFFSET),
    **dict.fromkeys(("DTSTAMP", "LAST-MODIFIED", "CREATED"), _UTC),
    **dict.fromkeys(("DTSTART", "DTEND", "RECURRENCE-ID"), _WHEN),
    **dict.fromkeys(("UID", "PRODID", "TZID"), f"(?=.){_TEXT}"),
    **dict.fromkeys(
        (
            "SUMMARY",
            "DESCRIPTION",
            "LOCATION",
            "COMMENT",
            "NAME",
            "X-WR-CALNAME",
            "X-WR-TIMEZONE",
            "TZNAME",
        ),
        _TEXT,
    ),
}
_PARAM = re.compile(r";([A-Za-z0-9-]+)=((?:\"[^\"]*\"|[^\";:])*)")
_LINE = re.compile(rf"([A-Za-z0-9-]+)((?:{_PARAM.pattern})*):(.*)", re.DOTALL)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MAX_OCTETS = 75  # RFC 5545 §3.1, without the line break.

_Findings = Iterator[tuple[int, str]]


@dataclass
class _Property:
    line: int
    name: str
    params: dict[str, str]
    value: str

    @property
    def form(self) -> tuple[bool, bool, str | None]:
        return "T" in self.value, self.value.endswith("Z"), self.params.get("TZID")


@dataclass
class _Component:
    line: int
    name: str
    properties: list[_Property] = field(default_factory=list)
    children: list["_Component"] = field(default_factory=list)

    def get(self, name: str) -> _Property | None:
        return next((each for each in self.properties if each.name == name), None)


def lint(data: bytes) -> list[str]:
    """Return what is wrong with a feed as `line N: …`, by line. A good feed has no findings."""
    root = _Component(1, "")
    findings = [*_check_bytes(data), *_parse(data, root), *_check_component(root)]
    if len(root.children) != 1:
        findings.append((1, f"{len(root.children)} calendars: a feed is one"))
    for calendar in root.children:
        findings += _check_references(calendar)
    return [f"line {line}: {message}" for line, message in sorted(findings)]


def _check_bytes(data: bytes) -> _Findings:
    if data.startswith(b"\xef\xbb\xbf"):
        yield 1, "a byte order mark"
    if not data.endswith(b"END:VCALENDAR\r\n"):
        yield data.count(b"\n") + 1, "the file does not end with END:VCALENDAR and CRLF"
    for number, match in enumerate(re.finditer(rb"([^\r\n]*)(\r\n|[\r\n]|$)", data), start=1):
        line, ending = match.groups()
        if ending in {b"\r", b"\n"}:
            yield number, "a bare CR or LF: lines end with CRLF"
        if len(line) > _MAX_OCTETS:
            yield number, f"{len(line)} octets, more than {_MAX_OCTETS}"
        if line.decode(errors="ignore").encode() != line:
            yield number, "not UTF-8 by itself: a sequence is broken or split by folding"


def _parse(data: bytes, root: _Component) -> _Findings:
    """Read `data` into `root`; report what is no content line and where BEGIN and END disagree."""
    stack = [root]
    for number, line in _unfold(data.decode(errors="replace").removeprefix("\ufeff")):
        if _CONTROLS.search(line):
            yield number, "a control character"
        if not (match := _LINE.fullmatch(line)):
            yield number, f"no content line: {line[:40]!r}"
            continue
        name, value = match[1].upper(), match[5]
        if name == "BEGIN":
            if value not in _CHILDREN.get(stack[-1].name, ()):
                yield number, f"{value} inside {stack[-1].name or 'no calendar'}"
            stack.append(_Component(number, value))
            stack[-2].children.append(stack[-1])
        elif name == "END":
            if not value or value != stack[-1].name:
                yield number, f"END:{value} does not match its BEGIN"
            stack[1:] = stack[1:-1]
        else:
            params = {param.upper(): text.strip('"') for param, text in _PARAM.findall(match[2])}
            stack[-1].properties.append(_Property(number, name, params, value))
    yield from (
        (component.line, f"BEGIN:{component.name} without its END") for component in stack[1:]
    )
    yield from ((prop.line, f"{prop.name} outside the calendar") for prop in root.properties)


def _unfold(text: str) -> Iterator[tuple[int, str]]:
    number = 1
    for line in re.split(r"\n(?![ \t])", re.sub("\r\n|\r", "\n", text).removesuffix("\n")):
        yield number, re.sub(r"\n[ \t]", "", line)
        number += 1 + line.count("\n")


def _check_component(component: _Component) -> _Findings:
    counts = Counter(each.name for each in component.properties)
    yield from (
        (component.line, f"{component.name} without {name}")
        for name in _REQUIRED.get(component.name, ())
        if not counts[name]
    )
    for name, count in counts.items():
        if count > 1 and name not in _REPEATABLE:
            yield component.line, f"{component.name} with {count} {name}"
        if reason := _FORBIDDEN.get((component.name, name)):
            yield component.line, f"{component.name} with {name}: {reason}"
    if component.name in {"VCALENDAR", "VTIMEZONE"} and not component.children:
        yield component.line, f"{component.name} without a component inside"
    if component.name == "VEVENT" and (start := component.get("DTSTART")):
        yield from _check_span(component, start)
    for prop in component.properties:
        yield from _check_property(component, prop)
    for child in component.children:
        yield from _check_component(child)


def _check_property(component: _Component, prop: _Property) -> _Findings:
    pattern, value_type = _VALUES.get(prop.name), prop.params.get("VALUE", "").upper()
    if pattern and not re.fullmatch(pattern, prop.value, re.DOTALL):
        yield prop.line, f"{prop.name} must not be {prop.value[:40]!r}"
    if prop.name == "REFRESH-INTERVAL" and value_type != "DURATION":
        yield prop.line, "REFRESH-INTERVAL without VALUE=DURATION"
    if pattern not in {_UTC, _WHEN}:
        return
    (has_time, is_utc, zone), is_onset = prop.form, component.name in _ONSETS
    problems = {
        "an instant with VALUE=DATE": has_time and value_type == "DATE",
        "a date without VALUE=DATE": not has_time and value_type != "DATE",
        "in need of no TZID": zone and (is_utc or not has_time),
        "in floating time": has_time and not (is_utc or zone or is_onset),
        "not local time": is_onset and (is_utc or zone or not has_time),
    }
    yield from (
        (prop.line, f"{prop.name} is {problem}") for problem, holds in problems.items() if holds
    )


def _check_span(event: _Component, start: _Property) -> _Findings:
    if end := event.get("DTEND"):
        if end.form != start.form:
            yield end.line, "DTEND is of another kind than DTSTART"
        elif end.value <= start.value:
            yield end.line, "DTEND is not later than DTSTART"
    if (rule := event.get("RRULE")) and (until := re.search(r"UNTIL=([^;]+)", rule.value)):
        if ("T" in until[1]) != start.form[0]:
            yield rule.line, "UNTIL is of another kind than DTSTART"
        elif "T" in until[1] and not until[1].endswith("Z"):
            yield rule.line, "UNTIL in local time: it must be in UTC"


def _check_references(calendar: _Component) -> _Findings:
    zones = Counter(
        tzid.value
        for each in calendar.children
        if each.name == "VTIMEZONE" and (tzid := each.get("TZID"))
    )
    uids = Counter[tuple[str, str]]()
    for component in calendar.children:
        for prop in component.properties:
            if (zone := prop.params.get("TZID")) and not zones[zone]:
                yield prop.line, f"TZID {zone} without its VTIMEZONE"
        if uid := component.get("UID"):
            recurrence = component.get("RECURRENCE-ID")
            uids[key := (uid.value, recurrence.value if recurrence else "")] += 1
            if uids[key] > 1:
                yield uid.line, "a UID that another event has"
    yield from (
        (calendar.line, f"{count} VTIMEZONE {zone}") for zone, count in zones.items() if count > 1
    )
