"""How the command line writes lists and numbers."""

import argparse
from collections.abc import Callable, Collection


def words(text: str) -> list[str]:
    """Split at commas."""
    return [word.strip() for word in text.split(",") if word.strip()]


def some_of(known: Collection[str]) -> Callable[[str], list[str]]:
    """Return a parser of comma-separated names that refuses unknown ones, and none at all."""

    def parse(text: str) -> list[str]:
        given = words(text)
        if not given or any(word not in known for word in given):
            raise argparse.ArgumentTypeError(f"{text!r}: expected some of {','.join(known)}")
        return given

    return parse


def sizes(text: str, what: str) -> tuple[int, ...]:
    """Read numbers joined by ``x``, as many as ``what`` names, e.g. ``"MxKxN"``.

    Raises:
        argparse.ArgumentTypeError: There are more or fewer, or they are no numbers.
    """
    numbers = text.lower().split("x")
    if len(numbers) != len(what.split("x")) or not all(number.isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r}: expected {what}, numbers joined by x")
    return tuple(map(int, numbers))


def positive(text: str) -> int:
    """Read a whole number above 0.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number above 0")
    return int(text)
