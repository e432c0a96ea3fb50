"""The tree of errors."""

import pytest
from nightshift import errors


@pytest.mark.parametrize(
    ("error", "above"),
    [
        (errors.ServiceError, Exception),
        (errors.TransientError, errors.ServiceError),
        (errors.PermanentError, errors.ServiceError),
        (errors.InvalidInput, errors.PermanentError),
        (errors.NotFound, errors.PermanentError),
        (errors.Conflict, errors.PermanentError),
    ],
)
def test_tree_is_as_its_docstring_draws_it(error, above):
    assert error.__bases__ == (above,)
    assert error.__name__ in errors.__doc__


def test_docstring_draws_every_error():
    defined = [
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ServiceError)
    ]
    assert [name for name in defined if name not in errors.__doc__] == []


@pytest.mark.parametrize(
    ("message", "line"),
    [("one", "one"), ("one\ntwo\n", "one"), ("", ""), ("\nsecond", "")],
)
def test_first_line_of_an_error(message, line):
    assert errors.first_line(ValueError(message)) == line


def test_error_that_cannot_be_shown_has_a_first_line():
    class CannotBeShown(Exception):
        def __str__(self):
            raise RuntimeError

    assert errors.first_line(CannotBeShown()) == "CannotBeShown"
