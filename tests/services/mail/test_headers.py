"""Text in a message's headers."""

from email.message import EmailMessage

import pytest

from services.mail.headers import make_header_text
from tests.messages import ENCODED


@pytest.mark.parametrize("text", ENCODED)
def test_text_that_looks_encoded_is_taken_as_it_stands(text):
    mail = EmailMessage()
    mail["Subject"] = make_header_text(text)
    assert mail["Subject"].replace("= ?", "=?") == text


@pytest.mark.parametrize("text", ["Hello,  world", "Hello,\r\nworld", " Hello,\tworld\n"])
def test_text_is_on_one_line(text):
    assert make_header_text(text) == "Hello, world"


@pytest.mark.parametrize("text", ["", "a = b?", "=?", "1 =? 2", "Größe: =?x"])
def test_other_text_stays(text):
    assert make_header_text(text) == text
