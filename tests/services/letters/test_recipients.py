"""A letter to one reader: its links, on both databases."""

import re

from services.calendars.models import Feed, FeedKind


def test_notice_links_to_the_readers_own_calendar(session, school):
    session.add_all(
        [
            Feed(id=1, kind=FeedKind.CLASS, owner_id=school.ids["ann"], token="a-class"),
            Feed(id=2, kind=FeedKind.USER, owner_id=school.ids["ann"], token="anns-own"),
        ]
    )
    school.tell(school.published())
    links = re.findall(
        r"https://calendar.school.example/f/\S+",
        school.mail("ann").get_body(("plain",)).get_content(),
    )
    assert links == ["https://calendar.school.example/f/anns-own.ics"]
    assert "/f/" not in school.mail("fred").get_body(("plain",)).get_content()


def test_notice_can_be_turned_off_by_one_click(school):
    school.tell(school.published())
    mail = school.mail("ann")
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert re.fullmatch(
        r"<https://calendar\.school\.example/u/unsubscribe\?t=[\w.-]+>", mail["List-Unsubscribe"]
    )
    assert mail["List-Unsubscribe"].strip("<>") in mail.get_body(("plain",)).get_content()
