"""This node's seat at one primary: two links, an epoch, a session, and what is done when one ends.

A seat is *open* while everything that the node keeps of the primary's channels is up to date. It
closes at once when a link is lost, or when the engine says that it is not the one that the node
knows, and opens again by one way only:

    both links up -> hello -> what the node holds is entered again -> the grace passes
    -> all that is kept here is read again -> open

The parts of a seat (values, publishing, who attends) hear of each step and look at no link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol, TypeVar

import msgspec
import structlog
import trio

from cachecast.bus.faults import (
    DownError,
    EpochError,
    FencedError,
    LinkError,
    LostError,
    MissingFunctionError,
    ReplyError,
    SetupError,
)
from cachecast.bus.resp import Limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from cachecast.bus.answers import Greeting
    from cachecast.bus.calls import Call, Facts
    from cachecast.bus.clock import EngineClock
    from cachecast.bus.functions import Functions
    from cachecast.bus.gauges import Gauges
    from cachecast.bus.link import About
    from cachecast.bus.resp import Reply

__all__ = ["GRACE_MS", "LinkLike", "Part", "PrimarySeat"]

T = TypeVar("T")

#: Milliseconds of grace at the beginning of a new epoch, in which nodes enter again what they know.
GRACE_MS: Final = 1500

#: Seconds between two beats.
BEAT_S: Final = 0.25

#: Seconds added to a grace, which ends by the engine's clock.
AFTER_GRACE_S: Final = 0.005

#: Seconds before the next hello, after one that failed on links that are up: the first pause, and
#: the longest.
PAUSE_S: Final = 0.05
LONGEST_PAUSE_S: Final = 0.5

#: Seconds for what is kept to be read again: 50,000 channels take one. What was refused is asked
#: for by beginning again.
RESYNC_LIMIT_S: Final = 30.0

#: Between two lines of the log about calls that the engine refuses until an operator acts.
REFUSAL_LOG_INTERVAL_S: Final = 60.0

_log = structlog.get_logger("cachecast.bus")


class ConnectionLike(Protocol):
    """What a real connection and the model's have in common."""

    fault: LinkError | None

    def send(
        self, arguments: Sequence[bytes | str | int], on_reply: Callable[[Reply], None] | None
    ) -> None:
        """See ``Connection.send``."""

    def subscribe(
        self, topics: Sequence[bytes], on_reply: Callable[[Reply], None] | None = None
    ) -> None:
        """See ``Connection.subscribe``."""

    def unsubscribe(
        self, topics: Sequence[bytes], on_reply: Callable[[Reply], None] | None = None
    ) -> None:
        """See ``Connection.unsubscribe``."""


class LinkLike(Protocol):
    """What a real link and a simulation's have in common; see ``Link``."""

    fault: LinkError | None
    about: About | None
    n_overflows: int

    @property
    def connection(self) -> ConnectionLike | None:
        """The present connection."""

    async def wait_up(self) -> ConnectionLike:
        """The next connection that is up, or the present one."""

    async def run(self) -> NoReturn:
        """Keep a connection until cancelled."""


class Part(Protocol):
    """What hears of the steps of a seat. Nothing here yields or raises, but ``restore``."""

    def begin(self, *, is_new_session: bool, is_new_epoch: bool) -> None:
        """The node has said hello: epoch and session are the seat's; a grace may be on."""

    def resync(self, on_done: Callable[[], None]) -> None:
        """The grace is over: read again what is kept here, and say when that is done.

        If the seat closes meanwhile it need not be said.
        """

    def opened(self) -> None:
        """The seat is open."""

    def closed(self) -> None:
        """The seat is not open any more."""

    def tick(self) -> None:
        """Four times a second, open or not."""


class PrimarySeat:
    """See :class:`~cachecast.bus.seat.Seat` for what the parts use of it.

    Attributes:
        to: calls of the primary.
        name: name of the primary.
        epoch, session: epoch and session of the last hello; 0 and empty before the first.
        is_open: whether the primary can be used: hello was said, no grace is on, and what is kept
            here is up to date.
        is_away: whether a link is down or nobody answers hello: nothing that is asked now will be
            answered soon.
        down_since: time when it closed, in the broker's seconds; None while it is open.
        fault: reason why it is closed; None while it is open.
        clock: what is known of the engine's clock.
        latency_s: seconds from the latest beat to its answer.
        n_sessions: number of sessions of all nodes, at the latest beat.
        n_opened: number of times that it was opened.
        n_epochs: number of epochs that it has seen.
        n_downs: number of times that it was closed.
        n_restored: number of values that the engine took back.
        n_evicted: number of values that this node took back, above a ceiling of their app.
        parts: parts that hear of its steps, in this order.
        restore: function that gives the offers of a grace.
        on_change: function called whenever it has opened or closed.
        approve: function awaited before the first hello, and whenever the engine is another
            process, before any value is brought to it; a ``LinkError`` says why it is not fit.
    """

    def __init__(
        self,
        name: str,
        to: Functions,
        facts: Facts,
        clock: EngineClock,
        *,
        now: Callable[[], float],
        lease_s: float,
        gauges: Gauges,
        limits: Limits | None = None,
    ) -> None:
        """Prepare it; :meth:`run` does the rest.

        Args:
            name: name of the primary.
            to: calls of the primary.
            facts: facts of this node.
            clock: clock of the engine; this object adds samples to it.
            now: function that gives the broker's seconds.
            lease_s: seconds after which a silent node is dead.
            gauges: numbers that each beat says.
            limits: limits of the links.
        """
        self.name = name
        self.to = to
        self.clock = clock
        self.epoch = 0
        self.session = ""
        self.is_open = False
        self.is_away = True
        self.down_since: float | None = now()
        self.fault: LinkError | None = None
        self.latency_s = 0.0
        self.n_sessions = 0
        self.n_opened = 0
        self.n_epochs = 0
        self.n_downs = 0
        self.n_restored = 0
        self.n_evicted = 0
        self.parts: Sequence[Part] = ()
        self.restore: Callable[[], Iterable[Call[int]]] = list
        self.on_change: Callable[[], None] = _nothing
        self.approve: Callable[[], Awaitable[None]] | None = None
        self._facts = facts
        self._now = now
        self._lease_ms = int(lease_s * 1000)
        self._gauges = gauges
        self._limits = limits or Limits()
        self._commands: LinkLike | None = None
        self._messages: LinkLike | None = None
        self._life: trio.CancelScope | None = None
        self._n_failures = 0
        self._approved = ""
        self._is_reaping = False
        self._is_leaving = False
        self._refusal_log_at = 0.0

    def attach_links(self, commands: LinkLike, messages: LinkLike) -> None:
        """Take its links over; once, before :meth:`run`. Their downs are :meth:`drop`."""
        self._commands, self._messages = commands, messages

    # --- asking

    def ask(self, call: Call[T], on_done: Callable[[T | LinkError], None]) -> None:
        """Call on the link of the messages; see ``Seat``."""
        self._call(self._messages, call, on_done)

    def command(self, call: Call[T], on_done: Callable[[T | LinkError], None]) -> None:
        """Call on the other link; see ``Seat``."""
        self._call(self._commands, call, on_done)

    def subscribe(self, topics: Sequence[bytes]) -> None:
        """Hear topics; see ``Seat``."""
        if topics and (connection := self.messages) is not None:
            try:
                connection.subscribe(topics, self._take_confirmation)
            except LinkError as fault:
                self.drop(fault)

    def unsubscribe(self, topics: Sequence[bytes]) -> None:
        """Hear them no more; see ``Seat``."""
        if topics and (connection := self.messages) is not None:
            try:
                connection.unsubscribe(topics, self._take_confirmation)
            except LinkError as fault:
                self.drop(fault)

    @property
    def messages(self) -> ConnectionLike | None:
        """The connection that brings the messages; None while it is down."""
        return None if self._messages is None else self._messages.connection

    @property
    def commands(self) -> ConnectionLike | None:
        """The other one."""
        return None if self._commands is None else self._commands.connection

    @property
    def about(self) -> About | None:
        """The engine."""
        return None if self._commands is None else self._commands.about

    @property
    def n_overflows(self) -> int:
        """Losses that the engine's output buffer explains."""
        return self._messages.n_overflows if self._messages is not None else 0

    def engine_ms(self) -> int:
        """The engine's milliseconds, as well as the node knows them."""
        now = self._now()
        return self.clock.engine_ms(now) if self.clock.is_known else int(now * 1000)

    def first_fault(self) -> LinkError | None:
        """Why it has not been opened yet, as far as that is known."""
        links = [link for link in (self._commands, self._messages) if link is not None]
        return self.fault or next((link.fault for link in links if link.fault is not None), None)

    def why_down(self) -> str:
        """Why it is not open, in a sentence."""
        return str(self.fault or f"There is no link to the engine {self.name} yet.")

    def _call(
        self, link: LinkLike | None, call: Call[T], on_done: Callable[[T | LinkError], None]
    ) -> None:
        connection = None if link is None else link.connection
        if connection is None:
            _soon(on_done, DownError(f"There is no link to the engine {self.name}."))
            return
        known, read = (self.epoch, self.session), call.read

        def take(reply: Reply) -> None:
            if isinstance(reply, LinkError):
                self.judge(reply, known)
                on_done(reply)
                return
            try:
                result = read(reply)
            except LinkError as fault:
                on_done(fault)
            else:
                on_done(result)

        try:
            connection.send(call.arguments, take)
        except LinkError as fault:
            _soon(on_done, fault)

    def judge(self, fault: LinkError, known: tuple[int, str] | None = None) -> None:
        """Look at what a call was answered: some answers mean that hello has to be said again.

        Args:
            fault: error that was the answer.
            known: epoch and session that the call named; those of an earlier hello say nothing.
        """
        is_stale = known is not None and known != (self.epoch, self.session)
        if isinstance(fault, EpochError | FencedError | MissingFunctionError) and not is_stale:
            self.drop(fault)
        elif isinstance(fault, SetupError) and self._now() >= self._refusal_log_at:
            self._refusal_log_at = self._now() + REFUSAL_LOG_INTERVAL_S
            _log.warning("engine refuses calls", engine=self.name, reason=str(fault))

    def _take_confirmation(self, reply: Reply) -> None:
        if isinstance(reply, LinkError) and not isinstance(reply, LostError):
            self.drop(reply)

    # --- opening and closing

    async def run(self) -> None:
        """Open, and open again whenever it was closed, until cancelled."""
        assert self._commands is not None
        assert self._messages is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._commands.run)
            nursery.start_soon(self._messages.run)
            while True:
                await self._commands.wait_up()
                await self._messages.wait_up()
                await self._live()
                if self._is_leaving:
                    await trio.sleep_forever()  # what was asked last is still to be sent
                if self.commands is not None and self.messages is not None:
                    self._n_failures += 1
                    await trio.sleep(
                        min(LONGEST_PAUSE_S, PAUSE_S * 2.0 ** min(self._n_failures, 8))
                    )

    async def _live(self) -> None:
        """From one hello to whatever ends what it began."""
        with trio.CancelScope() as self._life:
            try:
                greeting = await self._say_hello()
            except LinkError as fault:
                self.drop(fault)
                return
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_beat)
                nursery.start_soon(self._open, greeting)

    async def _say_hello(self) -> Greeting:
        if not self.epoch:
            await self._look_at_process()
        for _ in range(3):
            sent = self._now()
            try:
                greeting = await self._wait(self._hello())
            except MissingFunctionError:
                try:
                    await self._wait(self.to.load())
                except ReplyError:
                    pass  # another node has just loaded it
                continue
            is_new_epoch = greeting.epoch != self.epoch
            if is_new_epoch:
                self.clock.forget()
                self.n_epochs += 1
            self.clock.add(sent, self._now(), greeting.now_us)
            self.epoch, self.session = greeting.epoch, greeting.session
            if greeting.is_new:
                self._gauges.renew()
            self.n_sessions = greeting.n_sessions
            self.subscribe([self.to.keys.control])
            for part in self.parts:
                part.begin(is_new_session=greeting.is_new, is_new_epoch=is_new_epoch)
            self.is_away = False
            return greeting
        raise MissingFunctionError(
            f"The engine {self.name} takes the broker's functions and has none of them afterwards."
        )

    def announce(self, apps_with_webhooks: Sequence[str]) -> None:
        """Have events be kept for the webhooks of these apps, too. Never yields.

        They are said with every hello; one more on an open seat, which changes nothing else.
        """
        facts = msgspec.structs.replace(self._facts, apps_with_webhooks=tuple(apps_with_webhooks))
        is_new = not set(apps_with_webhooks) <= set(self._facts.apps_with_webhooks)
        self._facts = facts
        if is_new and self.is_open:
            self.command(self._hello(), lambda _: None)

    def _hello(self) -> Call[Greeting]:
        return self.to.hello(
            self._facts,
            seen_epoch=self.epoch,
            session=self.session,
            lease_ms=self._lease_ms,
            grace_ms=GRACE_MS,
        )

    async def _look_at_process(self) -> None:
        process = self.about.run_id if self.about is not None else ""
        if self.approve is not None and self._approved != process:
            await self.approve()
            self._approved = process

    async def _open(self, greeting: Greeting) -> None:
        try:
            await self._look_at_process()
            if greeting.grace_ms:
                ends = trio.current_time() + greeting.grace_ms / 1000 + AFTER_GRACE_S
                for call in self.restore():
                    n_taken = await self._wait(call)
                    if n_taken < 0:
                        break  # the grace is over
                    self.n_restored += n_taken
                await trio.sleep_until(ends)
            for part in self.parts:
                done = trio.Event()
                part.resync(done.set)
                with trio.move_on_after(RESYNC_LIMIT_S):
                    await done.wait()
                if not done.is_set():
                    raise DownError(
                        f"What is kept at the engine {self.name} could not be read again within "
                        f"{RESYNC_LIMIT_S:g} s."
                    )
        except LinkError as fault:
            self.drop(fault)
            return
        self.is_open = True
        self.n_opened += 1
        self._n_failures = 0
        self.fault = None
        self.down_since = None
        _log.info("engine is up", engine=self.name, epoch=self.epoch, nodes=self.n_sessions)
        for part in self.parts:
            part.opened()
        self.on_change()

    def take_place(self, epoch: int, session: str) -> None:
        """Go on with another process's session, once :meth:`run` begins. Never yields."""
        self.epoch, self.session = epoch, session

    def let_go(self) -> None:
        """Another process has the session: neither beat nor ask any more. Never yields."""
        self._is_leaving = True
        if self._life is not None:
            self._life.cancel()

    def close(self, fault: LinkError) -> None:
        """Close for good: the node leaves. Never yields."""
        self._is_leaving = True
        self.drop(fault)

    def drop(self, fault: LinkError) -> None:
        """Close, for what is kept here may be out of date; harmless when closed. Never yields."""
        self.is_away = not isinstance(fault, EpochError | FencedError | MissingFunctionError)
        self.fault = fault
        if self.is_open:
            self.is_open = False
            self.n_downs += 1
            self.down_since = self._now()
            if not self._is_leaving:
                _log.warning("engine is down", engine=self.name, reason=str(fault))
            for part in self.parts:
                part.closed()
        if self._life is not None:
            self._life.cancel()
        self.on_change()

    # --- beating

    async def _run_beat(self) -> None:
        while True:
            await trio.sleep(BEAT_S)
            try:
                await self._beat()
            except LinkError as fault:
                self.judge(fault)
                if not isinstance(fault, EpochError | FencedError | MissingFunctionError):
                    self.drop(fault)
                return

    async def _beat(self) -> None:
        due = self._gauges.due()
        sent = self._now()
        try:
            beat = await self._wait(self.to.beat(self.epoch, self.session, self._lease_ms, due))
        except LinkError:
            self._gauges.fail(due)
            raise
        received = self._now()
        self.latency_s = received - sent
        self.n_sessions = beat.n_sessions
        self._gauges.take(due, beat.gauges)
        if not self.clock.add(sent, received, beat.now_us):
            raise EpochError("The engine's clock was set.")
        if beat.has_dead and self.is_open and not self._is_reaping:
            self._reap()

    def _reap(self) -> None:
        """Take back what a dead node held, step by step, while the beat goes on."""
        self._is_reaping = True
        self.command(self.to.reap(self.epoch), self._take_reaped)

    def _take_reaped(self, answer: tuple[int, bool] | LinkError) -> None:
        self._is_reaping = False
        if not isinstance(answer, LinkError) and answer[1] and self.is_open:
            self._reap()

    async def retire(self) -> None:
        """End the session in order: what this node holds is announced gone at once."""
        if self.session and self.commands is not None:
            try:
                await self._wait(self.to.retire(self.epoch, self.session))
                await self._wait(self.to.reap(self.epoch))
            except LinkError:
                pass  # the lease does it

    async def _wait(self, call: Call[T]) -> T:
        """Await a call on the link of commands.

        Raises:
            LinkError: its answer, or none came.
        """
        result: list[T | LinkError] = []
        done = trio.Event()

        def take(answer: T | LinkError) -> None:
            result.append(answer)
            done.set()

        connection = self.commands
        if connection is None:
            raise DownError(f"There is no link to the engine {self.name}.")

        def take_reply(reply: Reply) -> None:
            if isinstance(reply, LinkError):
                take(reply)
                return
            try:
                take(call.read(reply))
            except LinkError as fault:
                take(fault)

        connection.send(call.arguments, take_reply)
        await done.wait()
        answer = result[0]
        if isinstance(answer, LinkError):
            raise answer
        return answer


def _soon(action: Callable[[Any], object], argument: object) -> None:
    """Call in a later step, as a reply would be."""
    trio.lowlevel.current_trio_token().run_sync_soon(action, argument)


def _nothing() -> None:
    """Tell nobody."""
