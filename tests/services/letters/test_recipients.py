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
    # RFC 2919: a name of this installation, the same for each reader.
    assert mail["List-Id"] == "<mail-events.school.example>"


def test_letters_about_one_event_are_a_thread(school):
    """Mail programs group what answers one id; the event's number stays when its title changes."""
    event, other = school.published(), school.published(title="Concert")
    mails = []
    for told, title in ((event, None), (event, "Another title"), (other, None)):
        if title:
            school.change(told, title=title)
        school.tell(told)
        mails.append(school.mail("ann"))

    roots = [f"<event.{one.id}@school.example>" for one in (event, event, other)]
    assert [mail["References"] for mail in mails] == roots
    assert [mail["In-Reply-To"] for mail in mails] == roots
    assert all(b"\nReferences: <event." in mail.as_bytes() for mail in mails)
    # No message has that id.
    assert not {mail["Message-ID"] for mail in mails} & set(roots)
