"""Names that people type: what an unknown one may have been meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Closer than this is a typing error; further away a suggestion only misleads.
_NEAR = 0.6
# So much of a name is taken for the name.
_PART = 4


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """Return the known names that one may have been meant to be: spelt alike, or holding it."""
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=most, cutoff=_NEAR)
    if len(name) >= _PART:
        near += [choice for choice in choices if name in choice and choice not in near]
    return near[:most]


def suggest(name: str, known: Iterable[str], what: str = "known are", most: int = 3) -> str:
    """Return how a sentence about an unknown name goes on: the near ones, or else all there are.

    Args:
        name: What was typed.
        known: What could have been.
        what: Words before the list of all.
        most: Most near names that are told.
    """
    choices = list(known)
    near = nearest(name, choices, most)
    return f"did you mean {', '.join(near)}?" if near else f"{what} {', '.join(choices)}"
