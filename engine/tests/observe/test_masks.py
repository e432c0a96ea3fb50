"""What is masked of jobs before a person sees it."""

import pytest
from nightshift.component import Composition
from nightshift.ledger import ledger
from nightshift.observe.masks import Mask, mask_links


@pytest.fixture
def mask():
    return Mask(
        Composition([ledger]).runtime(
            _env_file=None,
            metrics_token="a-metrics-token",
            flower_basic_auth="admin:a-flower-password",
            broker_url="redis://:a%2Fbroker@127.0.0.1:6379/0",
        )
    )


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("with a-metrics-token in it", "with *** in it"),
        ("login admin:a-flower-password", "login ***"),
        ("only a-flower-password", "only ***"),
        ("quoted a%2Fbroker, and not: a/broker", "quoted ***, and not: ***"),
        ("change-me is nobody's secret", "change-me is nobody's secret"),
    ],
)
def test_secrets_of_the_settings_are_masked(mask, text, shown):
    assert mask.text(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a.example/f/Zm9vYmFyYmF6cXV4MTIzNDU2.ics", "https://a.example/f/….ics"),
        ("https://a.example/?key=Zm9vYmFyYmF6cXV4MTIzNDU2&x=1", "https://a.example/?key=…&x=1"),
        ("see <https://a.example/Zm9vYmFyYmF6cXV4MTIzNDU2>", "see <https://a.example/…>"),
        ("https://a.example/jobs/list", "https://a.example/jobs/list"),
        ("Zm9vYmFyYmF6cXV4MTIzNDU2 outside", "Zm9vYmFyYmF6cXV4MTIzNDU2 outside"),
    ],
)
def test_tokens_in_links_are_masked(text, shown):
    assert mask_links(text) == shown


def test_values_of_secret_names_are_masked_at_every_depth(mask):
    value = {
        "password": "x", "api_key": "y", "user_id": 7, "token": None, "reset_token": 7,
        "list": [{"Authorization": "Bearer z"}, "a-metrics-token"], "a-metrics-token": 1,
    }  # fmt: skip

    assert mask.value(value) == {
        "password": "***", "api_key": "***", "user_id": 7, "token": None, "reset_token": 7,
        "list": [{"Authorization": "***"}, "***"], "***": 1,
    }  # fmt: skip
