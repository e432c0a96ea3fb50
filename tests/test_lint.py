import pytest

from tests.lint import lint

GOOD = """\
BEGIN:VCALENDAR
VERSION:2.0
PRODID:-//School//Test//EN
CALSCALE:GREGORIAN
REFRESH-INTERVAL;VALUE=DURATION:PT1H
X-PUBLISHED-TTL:PT1H
NAME:Class 27Ga
X-WR-CALNAME:Class 27Ga
BEGIN:VTIMEZONE
TZID:Europe/Zurich
BEGIN:DAYLIGHT
DTSTART:19700329T020000
TZOFFSETFROM:+0100
TZOFFSETTO:+0200
TZNAME:CEST
RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=3
END:DAYLIGHT
BEGIN:STANDARD
DTSTART:19701025T030000
TZOFFSETFROM:+0200
TZOFFSETTO:+0100
TZNAME:CET
RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=10
END:STANDARD
END:VTIMEZONE
BEGIN:VEVENT
DTSTAMP:20250101T000000Z
UID:one@school.example
DTSTART:20250330T060000Z
DTEND:20250330T080000Z
SUMMARY:Äpfel\\, Brot\\; Käse\\nund mehr
CATEGORIES:27Ga,27Gb
STATUS:CONFIRMED
TRANSP:OPAQUE
SEQUENCE:3
LOCATION:Aula
END:VEVENT
BEGIN:VEVENT
DTSTAMP:20250101T000000Z
UID:two@school.example
DTSTART;TZID=Europe/Zurich:20250401T080000
DTEND;TZID="Europe/Zurich":20250401T090000
RRULE:FREQ=WEEKLY;UNTIL=20250601T060000Z
SUMMARY:Chor
END:VEVENT
BEGIN:VEVENT
DTSTAMP:20250101T000000Z
UID:three@school.example
DTSTART;VALUE=DATE:20250501
DTEND;VALUE=DATE:20250503
SUMMARY:Reise
END:VEVENT
END:VCALENDAR
""".replace("\n", "\r\n").encode()

# What is replaced by what, at its first place, and the one finding that it must bring.
DEFECTS = {
    "bare LF": (
        "X-PUBLISHED-TTL:PT1H\r\n",
        "X-PUBLISHED-TTL:PT1H\n",
        "line 6: a bare CR or LF: lines end with CRLF",
    ),
    "bare CR": (
        "X-PUBLISHED-TTL:PT1H\r\n",
        "X-PUBLISHED-TTL:PT1H\r",
        "line 6: a bare CR or LF: lines end with CRLF",
    ),
    "long line": ("SUMMARY:Chor", "SUMMARY:" + 34 * "ä", "line 44: 76 octets, more than 75"),
    "byte order mark": ("BEGIN:VCALENDAR", "\ufeffBEGIN:VCALENDAR", "line 1: a byte order mark"),
    "nothing after the last line": (
        "END:VCALENDAR\r\n",
        "END:VCALENDAR",
        "line 53: the file does not end with END:VCALENDAR and CRLF",
    ),
    "no content line": ("SUMMARY:Chor", "SUMMARY", "line 44: no content line: 'SUMMARY'"),
    "empty line": ("SUMMARY:Chor\r\n", "SUMMARY:Chor\r\n\r\n", "line 45: no content line: ''"),
    "control character": ("SUMMARY:Chor", "SUMMARY:Ch\x1bor", "line 44: a control character"),
    "C1 control character": ("SUMMARY:Chor", "SUMMARY:Ch\x85or", "line 44: a control character"),
    "no VERSION": ("VERSION:2.0\r\n", "", "line 1: VCALENDAR without VERSION"),
    "no PRODID": ("PRODID:-//School//Test//EN\r\n", "", "line 1: VCALENDAR without PRODID"),
    "other VERSION": ("VERSION:2.0", "VERSION:1.0", "line 2: VERSION must not be '1.0'"),
    "METHOD": (
        "VERSION:2.0\r\n",
        "VERSION:2.0\r\nMETHOD:PUBLISH\r\n",
        "line 1: VCALENDAR with METHOD: a feed is no invitation, and some clients refuse it",
    ),
    "calendar UID": (
        "VERSION:2.0\r\n",
        "VERSION:2.0\r\nUID:x\r\n",
        "line 1: VCALENDAR with UID: clients take the whole feed for one item",
    ),
    "name twice": (
        "NAME:Class 27Ga\r\n",
        "NAME:Class 27Ga\r\nNAME:x\r\n",
        "line 1: VCALENDAR with 2 NAME",
    ),
    "REFRESH-INTERVAL without VALUE": (
        "REFRESH-INTERVAL;VALUE=DURATION",
        "REFRESH-INTERVAL",
        "line 5: REFRESH-INTERVAL without VALUE=DURATION",
    ),
    "no duration": (
        "X-PUBLISHED-TTL:PT1H",
        "X-PUBLISHED-TTL:1H",
        "line 6: X-PUBLISHED-TTL must not be '1H'",
    ),
    "empty duration": (
        "X-PUBLISHED-TTL:PT1H",
        "X-PUBLISHED-TTL:PT",
        "line 6: X-PUBLISHED-TTL must not be 'PT'",
    ),
    "no UID": ("UID:two@school.example\r\n", "", "line 38: VEVENT without UID"),
    "empty UID": ("UID:two@school.example", "UID:", "line 40: UID must not be ''"),
    "no DTSTAMP": ("DTSTAMP:20250101T000000Z\r\n", "", "line 26: VEVENT without DTSTAMP"),
    "local DTSTAMP": (
        "DTSTAMP:20250101T000000Z",
        "DTSTAMP;TZID=Europe/Zurich:20250101T000000",
        "line 27: DTSTAMP must not be",
    ),
    "no DTSTART": ("DTSTART;VALUE=DATE:20250501\r\n", "", "line 46: VEVENT without DTSTART"),
    "no such month": (
        "DTEND;VALUE=DATE:20250503",
        "DTEND;VALUE=DATE:20251303",
        "line 50: DTEND must not be '20251303'",
    ),
    "no such hour": (
        "DTEND:20250330T080000Z",
        "DTEND:20250330T240000Z",
        "line 30: DTEND must not be '20250330T240000Z'",
    ),
    "date without VALUE": (
        "DTEND;VALUE=DATE:20250503",
        "DTEND:20250503",
        "line 50: DTEND is a date without VALUE=DATE",
    ),
    "instant with VALUE=DATE": (
        "DTEND:20250330T",
        "DTEND;VALUE=DATE:20250330T",
        "line 30: DTEND is an instant with VALUE=DATE",
    ),
    "date and instant": (
        "DTEND;VALUE=DATE:20250503",
        "DTEND:20250503T080000Z",
        "line 50: DTEND is of another kind than DTSTART",
    ),
    "DTEND before DTSTART": (
        "DTEND:20250330T080000Z",
        "DTEND:20250330T050000Z",
        "line 30: DTEND is not later than DTSTART",
    ),
    "DTEND at DTSTART": (
        "DTEND;VALUE=DATE:20250503",
        "DTEND;VALUE=DATE:20250501",
        "line 50: DTEND is not later than DTSTART",
    ),
    "UTC with TZID": (
        "DTSTAMP:",
        "DTSTAMP;TZID=Europe/Zurich:",
        "line 27: DTSTAMP is in need of no TZID",
    ),
    "unknown TZID": (
        "SUMMARY:Chor",
        "EXDATE;TZID=Europe/Bern:20250408T080000\r\nSUMMARY:Chor",
        "line 44: TZID Europe/Bern without its VTIMEZONE",
    ),
    "local UNTIL": (
        "UNTIL=20250601T060000Z",
        "UNTIL=20250601T080000",
        "line 43: UNTIL in local time: it must be in UTC",
    ),
    "UNTIL as date": (
        "UNTIL=20250601T060000Z",
        "UNTIL=20250601",
        "line 43: UNTIL is of another kind than DTSTART",
    ),
    "RRULE without FREQ": ("RRULE:FREQ=WEEKLY;UNTIL", "RRULE:UNTIL", "line 43: RRULE must not be"),
    "UID twice": ("UID:two@", "UID:one@", "line 40: a UID that another event has"),
    "bad STATUS": ("STATUS:CONFIRMED", "STATUS:OK", "line 33: STATUS must not be 'OK'"),
    "bad TRANSP": ("TRANSP:OPAQUE", "TRANSP:BUSY", "line 34: TRANSP must not be 'BUSY'"),
    "bad SEQUENCE": ("SEQUENCE:3", "SEQUENCE:3.5", "line 35: SEQUENCE must not be '3.5'"),
    "SUMMARY twice": (
        "SUMMARY:Chor\r\n",
        "SUMMARY:Chor\r\nSUMMARY:Choir\r\n",
        "line 38: VEVENT with 2 SUMMARY",
    ),
    "bare comma": (
        "SUMMARY:Chor",
        "SUMMARY:Chor, Saal",
        "line 44: SUMMARY must not be 'Chor, Saal'",
    ),
    "bare semicolon": (
        "SUMMARY:Chor",
        "SUMMARY:Chor; Saal",
        "line 44: SUMMARY must not be 'Chor; Saal'",
    ),
    "bare backslash": (
        "SUMMARY:Chor",
        "SUMMARY:Chor\\Saal",
        "line 44: SUMMARY must not be 'Chor\\\\Saal'",
    ),
    "VALARM": (
        "SUMMARY:Chor\r\n",
        "SUMMARY:Chor\r\nBEGIN:VALARM\r\nEND:VALARM\r\n",
        "line 45: VALARM inside VEVENT",
    ),
    "time zone of RDATEs": (
        "RRULE:FREQ=YEARLY;BYDAY=-1SU;BYMONTH=3",
        "RDATE:20250330T020000",
        "line 11: DAYLIGHT with RDATE: Outlook shifts events, an RRULE is needed",
    ),
    "no offset": ("TZOFFSETTO:+0200\r\n", "", "line 11: DAYLIGHT without TZOFFSETTO"),
    "minus zero": (
        "TZOFFSETTO:+0200",
        "TZOFFSETTO:-0000",
        "line 14: TZOFFSETTO must not be '-0000'",
    ),
    "onset in UTC": (
        "DTSTART:19700329T020000",
        "DTSTART:19700329T020000Z",
        "line 12: DTSTART is not local time",
    ),
    "property outside": (
        "BEGIN:VCALENDAR\r\n",
        "X-A:b\r\nBEGIN:VCALENDAR\r\n",
        "line 1: X-A outside the calendar",
    ),
}


def seed(old: str, new: str) -> bytes:
    assert old.encode() in GOOD
    return GOOD.replace(old.encode(), new.encode(), 1)


def test_lint_finds_nothing_in_a_good_feed() -> None:
    assert lint(GOOD) == []


@pytest.mark.parametrize(("old", "new", "finding"), DEFECTS.values(), ids=DEFECTS)
def test_lint_finds_a_seeded_defect_and_nothing_else(old: str, new: str, finding: str) -> None:
    findings = lint(seed(old, new))

    assert len(findings) == 1
    assert findings[0].startswith(finding)


def test_lint_finds_floating_time() -> None:
    data = seed(
        "DTSTART:20250330T060000Z\r\nDTEND:20250330T080000Z",
        "DTSTART:20250330T060000\r\nDTEND:20250330T080000",
    )

    assert lint(data) == [
        "line 29: DTSTART is in floating time",
        "line 30: DTEND is in floating time",
    ]


def test_lint_lets_an_exception_share_its_events_uid() -> None:
    assert (
        lint(
            seed(
                "UID:two@school.example\r\n",
                "UID:one@school.example\r\nRECURRENCE-ID:20250401T060000Z\r\n",
            )
        )
        == []
    )


def test_lint_finds_a_sequence_split_by_folding() -> None:
    data = GOOD.replace("SUMMARY:Ä".encode(), b"SUMMARY:\xc3\r\n \x84")

    assert [finding.split(":")[0] for finding in lint(data)[:2]] == ["line 31", "line 32"]
    assert {finding.split(": ", 1)[1] for finding in lint(data)} == {
        "not UTF-8 by itself: a sequence is broken or split by folding"
    }


def test_lint_reads_folded_lines_and_counts_them() -> None:
    data = seed("SUMMARY:Chor", "SUMM\r\n ARY:Ch\r\n\tor").replace(
        b"DTEND;VALUE=DATE:20250503", b"DTEND;VALUE=DATE:2025"
    )

    assert lint(data) == [
        "line 52: DTEND is not later than DTSTART",
        "line 52: DTEND must not be '2025'",
    ]


def test_lint_finds_a_missing_end() -> None:
    findings = lint(seed("END:VEVENT\r\n", ""))

    assert "line 37: VEVENT inside VEVENT" in findings
    assert "line 1: BEGIN:VCALENDAR without its END" in findings


def test_lint_finds_an_end_too_many() -> None:
    assert "line 53: END:VEVENT does not match its BEGIN" in lint(
        seed("END:VCALENDAR\r\n", "END:VEVENT\r\nEND:VCALENDAR\r\n")
    )


def test_lint_finds_what_follows_the_calendar() -> None:
    assert lint(GOOD + b"<html>\r\n") == [
        "line 54: no content line: '<html>'",
        "line 55: the file does not end with END:VCALENDAR and CRLF",
    ]


def test_lint_finds_a_second_calendar() -> None:
    assert lint(GOOD + GOOD) == ["line 1: 2 calendars: a feed is one"]


@pytest.mark.parametrize("data", [b"", b"\r\n", b"END:VCALENDAR\r\n", b"\x00\xff"])
def test_lint_finds_that_there_is_no_calendar(data: bytes) -> None:
    assert "line 1: 0 calendars: a feed is one" in lint(data)


def test_lint_finds_a_calendar_without_a_component() -> None:
    data = b"BEGIN:VCALENDAR\r\nVERSION:2.0\r\nPRODID:x\r\nEND:VCALENDAR\r\n"

    assert lint(data) == ["line 1: VCALENDAR without a component inside"]


def test_lint_finds_a_time_zone_twice() -> None:
    zone = GOOD[GOOD.index(b"BEGIN:VTIMEZONE") : GOOD.index(b"BEGIN:VEVENT")]

    assert lint(GOOD.replace(zone, zone + zone)) == ["line 1: 2 VTIMEZONE Europe/Zurich"]
