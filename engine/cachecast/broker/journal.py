"""Why a connection, a subscription or a request was refused or ended: a line each, at level debug.

For an operator whose client "does not work". The rules of this file: a line has what the broker
itself decided (app, code, reason, socket id, and the channel's name) and nothing that a client
brought along: no payload, signature, key, query or address. And a flood of refusals is no flood of
lines: of each kind :data:`LINES_PER_S` are written, and then how many more there were.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import TYPE_CHECKING, Final, NoReturn

import structlog
import trio

from cachecast.errors import RemoteProtocolError

if TYPE_CHECKING:
    from cachecast.broker.feed import Feed

__all__ = ["ENDED", "Journal"]

#: Number of lines a second of one kind: app, event and code.
LINES_PER_S: Final = 10

#: Number of lines a second of all kinds together; a node may have thousands of apps.
MAX_LINES_PER_S: Final = 200

#: Number of kinds that are told apart within a second; clients choose the codes that they close
#: with.
MAX_KINDS: Final = 1_000

#: Number of kinds named in a summary, most frequent first.
SUMMED_KINDS: Final = 10

#: Event of a connection that has ended, for whatever reason.
ENDED: Final = "connection ended"

MAX_REASON_LENGTH: Final = 200
MAX_CHANNEL_LENGTH: Final = 64

#: Patterns of where our texts begin to quote the client. What it is told in full it sent itself; a
#: log is read by others, and a key that is unknown may be a secret in the wrong place.
_KEY: Final = re.compile(r"(?<=^App key ).* (?=not in this cluster)", re.DOTALL)
_QUOTE: Final = re.compile(
    r"""['"]|: Expected HMAC|: you should have sent|(?<=received on socket): |(?<=to channel) """
)

#: Number of notes between two questions whether anybody reads them: a question is five calls of
#: structlog, and there is a note for each connection that ends.
ASKS_EVERY: Final = 32

_log = structlog.get_logger("cachecast.journal")


class Journal:
    """The lines of one node. Never yields and never raises; at other levels it does nothing.

    Queue: :data:`MAX_KINDS` counts, emptied once a second; what is beyond counts as "other".
    """

    def __init__(self, feed: Feed | None = None) -> None:
        """Make it; ``feed`` is told of every refusal too."""
        self._feed = feed
        self._seen: Counter[tuple[str, str, str]] = Counter()
        self._n_lines = 0
        self._wakeup = trio.Event()
        self._is_read = False
        self._asked = 0

    def refused(
        self, what: str, error: RemoteProtocolError, *, app: str | None, **facts: str | None
    ) -> None:
        """Note a refusal that an error describes; see :meth:`note`."""
        channel = getattr(error, "channel", None)
        if channel:
            facts["channel"] = channel[:MAX_CHANNEL_LENGTH]
        self.note(what, app=app, code=error.close_code, reason=error.message, **facts)

    def note(
        self,
        what: str,
        *,
        app: str | None,
        code: int | None,
        reason: str,
        **facts: str | int | None,
    ) -> None:
        """Write a line, or count it if there were many like it within this second.

        Args:
            what: event of the line: what happened.
            app: id of the app; None if it is unknown.
            code: a close code or HTTP status; None if there is none.
            reason: a text of ours; what it quotes is cut off.
            facts: further fields of the line; nothing that a client chose freely. None is left out.
        """
        feed = self._feed
        if feed is not None and feed.tap is not None and what != ENDED:
            feed.tap(
                "refusal", what, app, facts.get("channel"), facts.get("socket_id"), code=code,
                text=_without_quotes(reason),
            )  # fmt: skip
        if not self._asked:
            self._is_read = _is_read()
        self._asked = (self._asked + 1) % ASKS_EVERY
        if not self._is_read:
            return
        kind = (app or "", what, str(code or ""))
        if kind not in self._seen and len(self._seen) >= MAX_KINDS:
            kind = ("", "other", "")
        self._seen[kind] += 1
        if self._seen[kind] > LINES_PER_S or self._n_lines >= MAX_LINES_PER_S:
            self._wakeup.set()
            return
        if self._seen[kind] == 1:
            self._wakeup.set()
        self._n_lines += 1
        line = {"app": app, "code": code, "reason": _without_quotes(reason), **facts}
        _log.debug(what, **{name: value for name, value in line.items() if value is not None})

    async def run(self) -> NoReturn:
        """Begin a new second whenever the last one is over, and say what it left out, for ever."""
        while True:
            await self._wakeup.wait()
            await trio.sleep(1.0)
            self._wakeup = trio.Event()
            n_hidden = self._seen.total() - self._n_lines
            if n_hidden:
                most = self._seen.most_common(SUMMED_KINDS)
                kinds = {" ".join(part for part in kind if part): count for kind, count in most}
                _log.debug(f"{n_hidden} more like these within a second", in_all=kinds)
            self._seen.clear()
            self._n_lines = 0


def _is_read() -> bool:
    """Whether anybody wants these lines. An embedder's own kind of logger decides for itself.

    One who has not configured structlog would find all of them on stdout.
    """
    if not structlog.is_configured():
        return False
    asks = getattr(_log, "is_enabled_for", None)
    return asks is None or bool(asks(logging.DEBUG))


def _without_quotes(text: str) -> str:
    text = _KEY.sub("", text.strip())
    return _QUOTE.split(text, maxsplit=1)[0][:MAX_REASON_LENGTH].rstrip(" :(")
