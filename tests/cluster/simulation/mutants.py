"""Faults that are put into the product's code, each of which the simulation has to find.

A mutant is a method with one piece of its text exchanged. That the piece is there, once, is
checked: whoever changes the method is told to look at its mutant.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from cachecast.bus import attach, engine_bus, primary, publishing, values

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["FOUND_ELSEWHERE", "MUTANTS", "Mutant", "mutated"]


class Mutant(NamedTuple):
    """One fault.

    Attributes:
        owner: class of the method.
        method: its name.
        old, new: what is exchanged in its text.
    """

    owner: type
    method: str
    old: str
    new: str


MUTANTS: Final[dict[str, tuple[Mutant, ...]]] = {
    "no memory check": (
        Mutant(engine_bus.EngineBus, "_check", "not isinstance(connection, Connection)", "True"),
    ),
    "no barrier": (
        Mutant(
            values.Values, "attach",
            "if not is_new and not name.is_cache and self.is_current(attachment):",
            "if not is_new and self.is_current(attachment):",
        ),
    ),
    "no restore": (
        Mutant(primary.PrimarySeat, "_open", "for call in self.restore():", "for call in ():"),
    ),
    "no version check": (
        Mutant(values.Values, "hear", "record.order <= attachment.order:", "False:"),
        Mutant(values.Values, "_take_read", "record.order > attachment.order", "record.order"),
    ),
    "generation ignored": (
        Mutant(
            values.Values,
            "is_current",
            "attachment.generation == self._generation and self._seat.is_open",
            "self._seat.is_open",
        ),
        Mutant(values.Values, "opened", "attachment.generation != self._generation", "False"),
    ),
    "no resync": (
        Mutant(
            values.Values, "resync", "connection = self._seat.messages",
            "on_done()\n    for found in self.by_topic.values():\n"
            "        found.generation = self._generation\n    connection = None",
        ),
    ),
    "no grace": (
        Mutant(primary.PrimarySeat, "_hello", "grace_ms=GRACE_MS", "grace_ms=0"),
    ),
    "READ before SUBSCRIBE": (
        Mutant(
            attach._Reading, "_send_next",
            "    self._connection.subscribe(\n"
            "            [keys.topic(*channel) for channel in part], self._take_confirmation\n"
            "        )\n"
            "        self._ask(first, [keys.value(*channel) for channel in part])\n",
            "    self._ask(first, [keys.value(*channel) for channel in part])\n"
            "        self._connection.subscribe([keys.topic(*channel) for channel in part])\n",
        ),
    ),
    "epoch not compared": (
        Mutant(values.Values, "hear", "record.order <= attachment.order:",
               "record.order[1] <= attachment.order[1]:"),
        Mutant(values.Values, "_take_read", "record.order > attachment.order",
               "record.order[1] > attachment.order[1]"),
    ),
    "recent publications forgotten": (
        Mutant(publishing.Publishing, "recent", "in tuple(self._recent):", "in ():"),
    ),
    "a read serves who came behind it": (
        Mutant(values.Values, "attach", "if not is_new and self._seat.is_open:",
               "if not is_new and self.is_current(attachment):"),
    ),
}  # fmt: skip


#: Whose fault no history shows: ``test_canary.py`` has it.
FOUND_ELSEWHERE: Final = {"no memory check"}


@contextmanager
def mutated(name: str) -> Iterator[None]:
    """Have a fault in the product.

    Raises:
        ValueError: the text to exchange is not there.
    """
    with pytest.MonkeyPatch.context() as patch:
        for mutant in MUTANTS[name]:
            patch.setattr(mutant.owner, mutant.method, _mutate(mutant))
        yield


def _mutate(mutant: Mutant) -> Any:
    method = inspect.getattr_static(mutant.owner, mutant.method)
    text = textwrap.dedent(inspect.getsource(method))
    if text.count(mutant.old) != 1:
        where = f"{mutant.owner.__name__}.{mutant.method}"
        raise ValueError(f"{where} does not have {mutant.old!r} once: mend its mutant")
    found: dict[str, Any] = {}
    names = sys.modules[mutant.owner.__module__].__dict__
    exec(compile("from __future__ import annotations\n" + text.replace(mutant.old, mutant.new),
                 f"<{mutant.method} mutated>", "exec"), dict(names), found)  # fmt: skip
    return found[mutant.method]
