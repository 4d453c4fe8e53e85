"""What an examination says: findings, each a plain sentence, and a remedy where one is needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

FINE, SOMETHING_WRONG, NOTHING_KNOWN = 0, 1, 2


class Kind(StrEnum):
    """How a finding is to be taken; the order is that of the page."""

    WORKS = "works"
    ABSENT = "absent"
    NOTE = "note"
    UNKNOWN = "unknown"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: how it is to be taken.
        name: short and stable, for programs: `tls.expired`.
        text: a sentence for people.
        remedy: what to do, where something is wrong or missing.
        facts: what was measured, by name, with the unit in the name.
    """

    kind: Kind
    name: str
    text: str
    remedy: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)


def works(name: str, text: str, **facts: object) -> Finding:
    """Say that something does what it should."""
    return Finding(Kind.WORKS, name, text, facts=facts)


def absent(name: str, text: str, remedy: str = "", **facts: object) -> Finding:
    """Say that this deployment does not have something that others have."""
    return Finding(Kind.ABSENT, name, text, remedy, facts)


def note(name: str, text: str, remedy: str = "", **facts: object) -> Finding:
    """Say something that is no fault and good to know."""
    return Finding(Kind.NOTE, name, text, remedy, facts)


def unknown(name: str, text: str, remedy: str = "") -> Finding:
    """Say what could not be examined, and why."""
    return Finding(Kind.UNKNOWN, name, text, remedy)


def wrong(name: str, text: str, remedy: str = "", **facts: object) -> Finding:
    """Say that something is wrong, and what to do."""
    return Finding(Kind.WRONG, name, text, remedy, facts)


def exit_code(findings: Iterable[Finding], *, is_whole: bool) -> int:
    """Return 1 where something is wrong, 2 where too little was seen to say so, otherwise 0.

    Args:
        findings: of one examination.
        is_whole: whether it came to its end, and was not stopped before.
    """
    kinds = {finding.kind for finding in findings}
    if Kind.WRONG in kinds:
        return SOMETHING_WRONG
    return FINE if is_whole and Kind.WORKS in kinds else NOTHING_KNOWN
