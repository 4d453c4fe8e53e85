"""A table before it has a form, and what may stand in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """A text in a table.

    Attributes:
        text: what it says.
        tone: `good`, `bad`, `doubt`, `soft` or nothing.
        is_code: whether it is a name or an address, to be copied as it is.
    """

    text: str
    tone: str = ""
    is_code: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the first of `n_words` columns are words, all others numbers.

    Attributes:
        title: heading.
        heads: headings of the columns.
        rows: cells, the first of each names the row.
        note: what to know when reading it.
        examples: what was seen of the faults that it counts.
        n_words: how many columns are words.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    examples: Sequence[str] = ()
    n_words: int = 1


def printable(value: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return plain data with what cannot be shown in its texts escaped.

    A target may answer with control characters that a terminal obeys, that XML forbids, or that
    are halves of a character and no UTF-8.
    """
    if isinstance(value, str):
        return "".join(c if c.isprintable() else repr(c)[1:-1] for c in value)
    if isinstance(value, list):
        return [printable(entry) for entry in value]
    if isinstance(value, dict):
        return {printable(key): printable(entry) for key, entry in value.items()}
    return value
