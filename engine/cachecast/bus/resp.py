"""One RESP3 connection to the engine, on Trio, parsed by hiredis.

The one idea: whatever arrives is *one ordered stream*. Replies and pushes are handed over in the
order in which the engine wrote them, by one task, without a checkpoint in between; and calls go out
in the order in which :meth:`Connection.send` was called. A PING on a connection that subscribes is
therefore a barrier: when its answer is there, every message published before the question has been
handed over.

A call's answer is a callback. :meth:`Connection.call` waits for one; who has thousands under way
gives the callback and needs no task for each.

Silence: every ``beat_s`` a PING is sent unless one is under way. When nothing is heard for
``silence_s`` after something was asked, the connection ends. A process that stood still itself must
not blame the engine, so this is judged only when nothing that has arrived waits to be read. An
answer that takes longer than ``reply_limit_s`` ends the connection too: nobody waits for ever.

What it refuses to know: addresses, reconnecting (``link.py``), and what calls mean
(``functions.py``).
"""

from __future__ import annotations

import os
import select
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import hiredis
import msgspec
import outcome
import trio

from cachecast.bus.faults import (
    BacklogError,
    DownError,
    GarbageError,
    LinkError,
    LostError,
    SilentError,
    SlowError,
    fault_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Connection", "Limits", "Reply", "has_unread"]

#: Answers of the engine: bytes, int, float, bool, None, lists and dicts of them; for a callback
#: also an :class:`~cachecast.bus.faults.LinkError`.
Reply: TypeAlias = Any

#: Bytes of one read: a hundred messages, a part of a millisecond to hand over.
READ_BYTES: Final = 32 * 1024

#: Bytes of an answer at most. None of ours is so long; what claims to be is no engine's.
MAX_REPLY_BYTES: Final = 64 * 1024 * 1024

_NOT_YET: Final = object()
# Its stub says a tuple of one; it takes any.
_pack: Final[Callable[[tuple[bytes | str | int, ...]], bytes]] = hiredis.pack_command  # type: ignore[assignment]
_PING: Final = _pack(("PING",))


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how much, for one connection.

    Attributes:
        beat_s: seconds between PINGs.
        silence_s: seconds without a byte after something was asked; then the connection ends.
        reply_limit_s: seconds that the slowest answer may take, by the beat that was asked after
            it.
        connect_limit_s: seconds for name, TCP, TLS and greeting together.
        max_pending: number of calls without an answer; past it calls are refused.
        max_unsent_bytes: number of bytes that the kernel has not taken; past it calls are refused.
    """

    beat_s: float = 0.25
    silence_s: float = 1.0
    reply_limit_s: float = 5.0
    connect_limit_s: float = 2.0
    max_pending: int = 50_000
    max_unsent_bytes: int = 16 * 1024 * 1024


def has_unread(stream: trio.abc.Stream) -> bool:
    """Whether bytes, or an end, wait in the kernel for the stream's reader. Never yields."""
    while isinstance(stream, trio.SSLStream):
        stream = stream.transport_stream
    if not isinstance(stream, trio.SocketStream):
        return False
    poll = select.poll()
    poll.register(stream.socket.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class _Topics:
    """(Un)subscribing, which RESP3 confirms by pushes, one a topic, and refuses by one error."""

    __slots__ = ("_on_reply", "n_confirmations")

    def __init__(self, on_reply: Callable[[Reply], None] | None, n_confirmations: int) -> None:
        self._on_reply = on_reply
        self.n_confirmations = n_confirmations

    def __call__(self, reply: Reply) -> None:
        if self._on_reply is not None:
            self._on_reply(reply)


class Connection:
    """One connection, from the first byte to the last; not used again after its end.

    Attributes:
        n_refused: number of calls that were refused because of a bound.
        n_messages: number of published messages that were handed over.
        n_unsent_bytes: number of bytes that the kernel has not taken yet.
        fault: reason why the connection ended; None while it lives.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        *,
        limits: Limits | None = None,
        on_message: Callable[[bytes, bytes], None] | None = None,
        is_unread: Callable[[], bool] | None = None,
    ) -> None:
        """Take over a connected stream; nothing happens before :meth:`run`.

        Args:
            stream: connected stream, encrypted if it shall be; closed at the end of :meth:`run`.
            limits: limits of the connection.
            on_message: function called with topic and payload of every published message, in order
                with the replies. It must neither raise nor block: everybody's answers stand behind
                it.
            is_unread: function that tells whether bytes wait to be read; by default the kernel is
                asked.
        """
        self._stream = stream
        # Of a plain socket, which is read and written without Trio's ceremony.
        self._fd = stream.socket.fileno() if isinstance(stream, trio.SocketStream) else None
        self._limits = limits or Limits()
        self._on_message = on_message or _ignore
        self._is_unread = is_unread or (lambda: has_unread(stream))
        self._reader = hiredis.Reader(replyError=fault_of, notEnoughData=_NOT_YET)
        # What is called with the reply; each is a call without an answer.
        self._pending: deque[Callable[[Reply], None] | None] = deque()
        self._unsent: list[bytes] = []
        # The task that writes, while it has nothing to.
        self._writer: trio.lowlevel.Task | None = None
        self._heard_at = 0.0
        self._pinged_at: float | None = None
        self._scope: trio.CancelScope | None = None
        self.n_refused = 0
        self.n_messages = 0
        self.n_unsent_bytes = 0
        self.fault: LinkError | None = None

    @property
    def n_pending(self) -> int:
        """Calls without an answer."""
        return len(self._pending)

    # --- asking

    def send(
        self, arguments: Sequence[bytes | str | int], on_reply: Callable[[Reply], None] | None
    ) -> None:
        """Send a call; its answer comes by callback. Never yields.

        Calls leave in the order of this method, all of one turn of the loop in one write.

        Args:
            arguments: words of the command.
            on_reply: function called once with the reply, or with an ``LinkError`` if the engine
                refused or the connection ended; it must neither raise nor block. None discards the
                reply.

        Raises:
            DownError: the connection has ended; nothing was sent.
            BacklogError: a bound is reached; nothing was sent.
        """
        self._enqueue(_pack(tuple(arguments)), on_reply)

    def subscribe(
        self, topics: Sequence[bytes], on_reply: Callable[[Reply], None] | None = None
    ) -> None:
        """Subscribe to topics; see :meth:`send`. The reply is None, after the last confirmation.

        Messages may be handed over before ``on_reply`` is called; none is missed after it.
        """
        self._enqueue(_pack((b"SUBSCRIBE", *topics)), _Topics(on_reply, len(topics)))

    def unsubscribe(
        self, topics: Sequence[bytes], on_reply: Callable[[Reply], None] | None = None
    ) -> None:
        """Unsubscribe from topics; see :meth:`subscribe`."""
        self._enqueue(_pack((b"UNSUBSCRIBE", *topics)), _Topics(on_reply, len(topics)))

    async def call(self, *arguments: bytes | str | int) -> Reply:
        """Send a call and wait for its reply.

        Concurrent calls go out in the order in which they began. If cancelled, the call is still
        carried out by the engine, or not; its reply is discarded.

        Raises:
            LinkError: see :meth:`send`; or the engine refused; or the connection ended.
        """
        task = trio.lowlevel.current_task()
        is_waiting = True

        def answered(reply: Reply) -> None:
            if is_waiting:
                trio.lowlevel.reschedule(task, outcome.Value(reply))

        def abort(_: Callable[[], None]) -> trio.lowlevel.Abort:
            nonlocal is_waiting
            is_waiting = False
            return trio.lowlevel.Abort.SUCCEEDED

        self.send(arguments, answered)
        reply = await trio.lowlevel.wait_task_rescheduled(abort)
        if isinstance(reply, LinkError):
            raise reply
        return reply

    def _enqueue(self, packed: bytes, on_reply: Callable[[Reply], None] | None) -> None:
        if self.fault is not None:
            raise DownError(f"There is no link to the engine: {self.fault}")
        if len(self._pending) >= self._limits.max_pending:
            self.n_refused += 1
            raise BacklogError(self._limits.max_pending, "calls")
        n_bytes = len(packed)
        if self.n_unsent_bytes and self.n_unsent_bytes + n_bytes > self._limits.max_unsent_bytes:
            self.n_refused += 1
            raise BacklogError(self._limits.max_unsent_bytes, "bytes")
        self._put(packed, on_reply)

    def _put(self, packed: bytes, on_reply: Callable[[Reply], None] | None) -> None:
        self._pending.append(on_reply)
        if self._writer is not None:
            trio.lowlevel.reschedule(self._writer)
            self._writer = None
        self._unsent.append(packed)
        self.n_unsent_bytes += len(packed)

    # --- living

    async def run(self) -> LinkError:
        """Read, write and beat until the connection ends; then close it.

        Every call without an answer gets the reason by its callback before this returns. If
        cancelled, the same happens.

        Returns:
            Reason why the connection ended.
        """
        self._heard_at = trio.current_time()
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                if self.fault is None:
                    nursery.start_soon(self._run_reader)
                    nursery.start_soon(self._run_writer)
                    nursery.start_soon(self._run_beat)
        finally:
            self.end(LostError("The connection to the engine was closed on this side."))
            await trio.aclose_forcefully(self._stream)
        assert self.fault is not None
        return self.fault

    def end(self, fault: LinkError) -> None:
        """End the connection with a reason; only the first counts. Never yields."""
        if self.fault is not None:
            return
        self.fault = fault
        if self._scope is not None:
            self._scope.cancel()
        self._unsent.clear()
        self.n_unsent_bytes = 0
        pending, self._pending = self._pending, deque()
        for on_reply in pending:
            if on_reply is not None:
                on_reply(fault)

    async def _run_reader(self) -> None:
        cause = ""
        try:
            while data := await self._receive():
                self._heard_at = trio.current_time()
                self._reader.feed(data)
                self._hand_over()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            cause = f" ({_root(error)})"
        except hiredis.ProtocolError as error:
            self.end(_garbage(str(error)))
        except GarbageError as fault:
            self.end(fault)
        self.end(
            LostError(
                f"The engine ended the connection{cause}: it was stopped, an operator or a "
                "failover ended its clients, or its output buffer for this node ran over "
                "(client-output-buffer-limit)."
            )
        )

    async def _receive(self) -> bytes:
        if self._fd is None:
            return bytes(await self._stream.receive_some(READ_BYTES))
        # Trio would ask first, in vain mostly: what there was has been read.
        while True:
            await trio.lowlevel.wait_readable(self._fd)
            try:
                return os.read(self._fd, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError(str(error)) from error

    async def _send(self, data: bytes) -> None:
        if self._fd is None:
            await self._stream.send_all(data)
            return
        # Whatever the kernel takes at once needs no turn of its own.
        try:
            n_sent = os.write(self._fd, data)
        except BlockingIOError:
            n_sent = 0
        except OSError as error:
            raise trio.BrokenResourceError(str(error)) from error
        if n_sent < len(data):
            await self._stream.send_all(data[n_sent:])

    def _hand_over(self) -> None:
        """Give what has arrived to who waits for it, in order. Never yields."""
        read, on_message = self._reader.gets, self._on_message
        while (reply := read()) is not _NOT_YET:
            if type(reply) is hiredis.PushNotification:
                if reply[0] == b"message":
                    self.n_messages += 1
                    on_message(reply[1], reply[2])
                elif reply[0] in {b"subscribe", b"unsubscribe"}:
                    self._confirm()
                continue
            if not self._pending:
                if isinstance(reply, LinkError):
                    # What the engine says unasked before it hangs up: max clients, for example.
                    self.end(LostError(f"The engine ended the connection: {reply}"))
                    return
                raise GarbageError("The engine answered what nobody asked: it is out of step.")
            on_reply = self._pending.popleft()
            if on_reply is not None:
                on_reply(reply)
            if self.fault is not None:
                return
        if self._reader.len() > MAX_REPLY_BYTES:
            raise GarbageError(f"A reply is longer than {MAX_REPLY_BYTES} bytes.")

    def _confirm(self) -> None:
        head = self._pending[0] if self._pending else None
        if not isinstance(head, _Topics):
            return  # the engine unsubscribed us by itself
        head.n_confirmations -= 1
        if not head.n_confirmations:
            self._pending.popleft()
            head(None)

    async def _run_writer(self) -> None:
        try:
            while True:
                if not self._unsent:
                    self._writer = trio.lowlevel.current_task()
                    await trio.lowlevel.wait_task_rescheduled(self._stop_waiting)
                data = b"".join(self._unsent)
                self._unsent.clear()
                await self._send(data)
                self.n_unsent_bytes -= len(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            if not self._is_unread():  # else the reader finds the reason
                self.end(LostError(f"The connection to the engine broke: {_root(error)}."))

    def _stop_waiting(self, _: Callable[[], None]) -> trio.lowlevel.Abort:
        self._writer = None
        return trio.lowlevel.Abort.SUCCEEDED

    async def _run_beat(self) -> None:
        limits = self._limits
        while True:
            await trio.sleep(limits.beat_s)
            now = trio.current_time()
            if self._pinged_at is None:
                self._pinged_at = now
                self._put(_PING, self._on_pong)
            elif self._is_unread():
                continue
            elif now - max(self._pinged_at, self._heard_at) > limits.silence_s:
                self.end(
                    SilentError(
                        f"Nothing was heard from the engine for {limits.silence_s:g} s. What was "
                        "asked may have been done."
                    )
                )
            elif now - self._pinged_at > limits.reply_limit_s:
                self.end(
                    SlowError(
                        f"An answer of the engine took longer than {limits.reply_limit_s:g} s. "
                        "What was asked may have been done."
                    )
                )

    def _on_pong(self, reply: Reply) -> None:
        del reply  # an error is an answer too; what was asked before it tells more
        self._pinged_at = None


def _garbage(text: str) -> GarbageError:
    return GarbageError(
        f"What came is no RESP3 ({text[:80]}): is there another kind of server, or TLS on only one "
        "side?"
    )


def _root(error: BaseException) -> str:
    """The system's words behind Trio's."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


def _ignore(topic: bytes, payload: bytes) -> None:
    """Take a message that nobody wants."""
    del topic, payload
