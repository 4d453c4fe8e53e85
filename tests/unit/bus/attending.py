"""Nodes with seats at a model of the engine, stepped by hand: for tests of what is no value.

A :class:`Desk` is a seat as the core of the bus has one, without tasks: it says hello, begins,
resyncs and opens when a test lets it. A :class:`Crowd` is what a node is told, checked as its
clients would check it: nobody comes who is there, nobody goes who is not.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from cachecast.bus.attendance import Attendance
from cachecast.bus.calls import Facts
from cachecast.bus.contents import Contents
from cachecast.bus.faults import DownError, EpochError, FencedError, LinkError, LostError
from cachecast.bus.functions import Functions
from cachecast.bus.model import Model
from cachecast.bus.receipt import Receipt
from cachecast.bus.shards import Keys
from cachecast.events import AppEvent
from cachecast.protocol.channel_name import ChannelName, parse_channel_name
from cachecast.protocol.session import Member

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.bus.calls import Call
    from cachecast.bus.model import ModelConnection
    from cachecast.bus.seal import Seal
    from cachecast.bus.seam import Entry, Envelope, Exit

APP = "4242"
START_US = 1_790_000_000_000_000
LEASE_MS = 3_000
GRACE_MS = 1_500


def name_of(channel: str) -> ChannelName:
    return parse_channel_name(channel)


class World:
    """The engine, its clock, and the nodes."""

    def __init__(
        self,
        n_nodes: int = 1,
        *,
        seal: Seal | None = None,
        limit: int = 100,
        is_valkey: bool = False,
    ) -> None:
        self.now_us = START_US
        self.set_back_us = 0
        self.model = Model(lambda: self.now_us - self.set_back_us, "aa")
        self.model.libraries.add(Functions(Keys()).name)
        self.model.replies_first = is_valkey
        self.soon: deque[Callable[[], object]] = deque()
        self.seal = seal
        self.limit = limit
        self.desks = [Desk(self, f"n{number}") for number in range(n_nodes)]
        self.n_runs = 0
        for desk in self.desks:
            desk.connect()
        self.pump()
        self.settle_down()

    def now(self) -> float:
        return (self.now_us - START_US) / 1e6

    def pass_s(self, seconds: float) -> None:
        """Let time pass in quarters of a second: beats, ticks, and what follows from them."""
        for _ in range(max(1, round(seconds * 4))):
            self.now_us += 250_000
            for desk in self.desks:
                desk.quarter()
            self.pump()

    def settle_down(self) -> None:
        """Let every grace, lease and limit pass."""
        self.pass_s(8)

    def pump(self) -> None:
        """Bring everything that is on its way to its end."""
        is_moving = True
        while is_moving:
            is_moving = bool(self.soon)
            while self.soon:
                self.soon.popleft()()
            for connection in list(self.model.connections):
                is_moving = bool(connection.serve() or connection.hand_over()) or is_moving

    def restart(self) -> None:
        self.n_runs += 1
        self.model.restart(f"b{self.n_runs}")
        self.model.libraries.add(Functions(Keys()).name)

    def execute(self, make: Callable[[Functions], Call[Any]]) -> Any:
        call = make(Functions(Keys()))
        return call.read(self.model.execute(call.arguments))

    @property
    def epoch(self) -> int:
        """The newest that anybody knows."""
        return max(desk.epoch for desk in self.desks)

    def roster(self, channel: str) -> set[str]:
        """Who is in a presence channel, as the engine has it."""
        epoch = self.epoch
        return set(self.execute(lambda to: to.page(epoch, "m", APP, channel))[1])

    def total(self, channel: str) -> int:
        epoch = self.epoch
        return int(self.execute(lambda to: to.look(epoch, "o", APP, [channel]))[0])

    def hooks(self) -> list[bytes]:
        """Bodies of events for webhooks that nobody has settled."""
        return [body for _, body in self.model.functions._hooks.get(APP, [])]


class Crowd:
    """What a node is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []
        self.rosters: dict[str, set[str]] = {}
        self.online: dict[str, bool] = {}
        self.hooks: list[tuple[AppEvent, Receipt[None]]] = []

    def deliver(self, envelope: Envelope) -> None:
        raise AssertionError(envelope)

    def forget(self, app_id: str, channel: str) -> None:
        raise AssertionError(channel)

    def member_changed(self, app_id: str, channel: str, change: str, member: Member) -> None:
        self.told.append((change, channel, member.key))
        known = self.rosters.get(channel)
        if known is not None:
            assert (member.key in known) == (change == "member_removed"), (change, member.key)
            (known.add if change == "member_added" else known.discard)(member.key)

    def user_changed(self, app_id: str, user_id: str, change: str) -> None:
        self.told.append((change, user_id))
        if user_id in self.online:
            assert self.online[user_id] == (change == "offline"), (change, user_id)
            self.online[user_id] = change == "online"

    def count_changed(self, app_id: str, channel: str, count: int) -> None:
        self.told.append(("count", channel, count))

    def crowd_eased(self, app_id: str, channel: str) -> None:
        self.told.append(("eased", channel))

    def end_user(self, app_id: str, user_id: str) -> None:
        self.told.append(("ended", user_id))

    def take_hook(self, app_id: str, event: AppEvent, receipt: Receipt[None]) -> None:
        self.hooks.append((event, receipt))

    def went_up(self) -> None: ...

    def went_down(self, reason: str) -> None: ...

    def take(self) -> list[tuple[Any, ...]]:
        """What was told since the last time."""
        told, self.told = self.told, []
        return told


class Desk:
    """A node's seat, and the node."""

    def __init__(self, world: World, node: str) -> None:
        self.world = world
        self.to = Functions(Keys())
        self.facts = Facts(node=node, nonce="x", primaries=("a/0",), apps_with_webhooks=(APP,))
        self.epoch = 0
        self.session = ""
        self.is_open = False
        self.opened_at = 0.0
        self.is_alive = True
        self.is_cut = False
        self.grace_until_us = 0
        self.is_greeting = False
        self.is_resyncing = False
        self.messages: ModelConnection | None = None
        self.commands: ModelConnection | None = None
        self.crowd = Crowd()
        self.attached: dict[str, int] = {}
        self.contents = Contents(world.seal, lambda: world.now_us // 1000)
        self.attendance = Attendance(
            self,
            self.crowd,
            contents=self.contents,
            clock=world.now,
            max_members=lambda _: world.limit,
            has_webhooks=lambda app_id: app_id == APP,
            attach=self.attach,
            detach=self.detach,
        )

    # --- the seat

    def ask(self, call: Call[Any], on_done: Callable[[Any], None]) -> None:
        self._send(self.messages, call, on_done)

    def command(self, call: Call[Any], on_done: Callable[[Any], None]) -> None:
        self._send(self.commands, call, on_done)

    def _send(
        self, connection: ModelConnection | None, call: Call[Any], on_done: Callable[[Any], None]
    ) -> None:
        if connection is None or connection.fault is not None:
            self.world.soon.append(lambda: on_done(DownError("no link")))
            return
        known = self.epoch, self.session

        def take(reply: Any) -> None:
            if not isinstance(reply, LinkError):
                reply = call.read(reply)
            elif isinstance(reply, EpochError | FencedError) and known == (
                self.epoch,
                self.session,
            ):
                self.drop()
            on_done(reply)

        connection.send(call.arguments, take)

    def subscribe(self, topics: Any) -> None:
        if self.messages is not None and self.messages.fault is None:
            self.messages.subscribe(topics)

    def unsubscribe(self, topics: Any) -> None:
        if self.messages is not None and self.messages.fault is None:
            self.messages.unsubscribe(topics)

    def attach(self, app_id: str, name: ChannelName) -> Receipt[None]:
        n = self.attached[name.text] = self.attached.get(name.text, 0) + 1
        if n == 1:
            self.subscribe([self.to.keys.topic(app_id, name.text)])
        return Receipt.of(None)

    def detach(self, app_id: str, name: ChannelName) -> None:
        self.attached[name.text] -= 1
        if not self.attached[name.text]:
            del self.attached[name.text]
            self.unsubscribe([self.to.keys.topic(app_id, name.text)])

    # --- its life

    def connect(self) -> None:
        """New links, unless they are cut; the greeting is on its way."""
        if self.is_cut or not self.is_alive:
            return
        self.messages = self.world.model.connect(self.hear)
        self.commands = self.world.model.connect(lambda *_: None)
        self.greet()

    def greet(self) -> None:
        if self.commands is None or self.commands.fault is not None:
            return
        self.is_greeting = True
        call = self.to.hello(
            self.facts,
            seen_epoch=self.epoch,
            session=self.session,
            lease_ms=LEASE_MS,
            grace_ms=GRACE_MS,
        )

        def take(reply: Any) -> None:
            self.is_greeting = False
            if isinstance(reply, LinkError):
                return
            greeting = call.read(reply)
            is_new_epoch = greeting.epoch != self.epoch
            self.epoch, self.session = greeting.epoch, greeting.session
            self.grace_until_us = self.world.now_us + greeting.grace_ms * 1000
            self.subscribe([self.to.keys.control])
            self.attendance.begin(is_new_session=greeting.is_new, is_new_epoch=is_new_epoch)
            self.is_resyncing = False
            self.open_if_due()

        self.commands.send(call.arguments, take)

    def open_if_due(self) -> None:
        is_due = self.epoch and not self.is_open and not self.is_greeting and not self.is_resyncing
        if not is_due or self.world.now_us < self.grace_until_us or self.messages is None:
            return
        self.is_resyncing = True
        session = self.session
        if self.attached:
            self.subscribe([self.to.keys.topic(APP, channel) for channel in self.attached])

        def done() -> None:
            if self.is_resyncing and session == self.session:
                self.is_resyncing = False
                self.is_open = True
                self.opened_at = self.world.now()
                self.attendance.opened()

        self.attendance.resync(done)

    def drop(self) -> None:
        """The seat closes: hello has to be said again."""
        self.is_resyncing = False
        if self.is_open:
            self.is_open = False
            self.attendance.closed()
        if not self.is_greeting:
            self.greet()

    def quarter(self) -> None:
        """A beat, and a tick."""
        if not self.is_alive:
            return
        if self.messages is not None and self.messages.fault is not None:
            self.cut()
        if self.messages is None:
            self.connect()
        elif not self.is_greeting:
            self.open_if_due()

            def take(beat: Any) -> None:
                if not isinstance(beat, LinkError) and beat.has_dead and self.is_open:
                    self.command(self.to.reap(self.epoch), lambda _: None)

            self.command(self.to.beat(self.epoch, self.session, LEASE_MS), take)
        self.attendance.tick()

    def cut(self) -> None:
        """The links are lost; they come back at the next quarter of a second, or after `heal`."""
        self.is_open = False
        self.is_resyncing = False
        self.is_greeting = False
        for connection in (self.messages, self.commands):
            if connection is not None:
                connection.cut(LostError("cut"))
        self.messages = self.commands = None
        self.attendance.closed()

    def die(self) -> None:
        self.cut()
        self.is_alive = False

    def hear(self, topic: bytes, payload: bytes) -> None:
        kind, _, rest = topic.removeprefix(self.to.keys.topics).decode().partition(":")
        app_id, _, name = rest.partition("/")
        if kind == "control" and payload[:1] not in {b"t", b"b"}:
            return
        self.attendance.hear(kind, app_id, name, payload)

    # --- its clients

    def enter(self, channel: str, user: str | None = None) -> Client:
        return Client(self, channel, user)

    def roster(self, channel: str) -> set[str] | None:
        """Members as this node's clients know them: what they were given, and news."""
        return self.crowd.rosters.get(channel)


class Client:
    """A subscription of one connection."""

    def __init__(self, desk: Desk, channel: str, user: str | None) -> None:
        self.desk = desk
        self.name = name_of(channel)
        self.member = None if user is None else Member(user)
        self.entry: Entry | None = None
        self.fault: Exception | None = None
        self.exit: Receipt[Exit] | None = None
        self.is_in = False
        self.wants_out = False
        self.receipt = desk.attendance.rosters.enter(APP, self.name, self.member)
        self.receipt.when_done(self._take)

    def _take(self) -> None:
        self.fault = self.receipt.fault
        if self.fault is not None:
            # Whoever is late must have a reason.
            is_late = "did not answer" in str(self.fault)
            desk = self.desk
            assert not is_late or not desk.is_open or desk.world.now() - desk.opened_at < 1
            return
        self.entry = self.receipt.value
        self.is_in = True
        assert self.entry is not None
        if self.entry.roster is not None:
            known = set(self.entry.roster.user_ids)
            assert self.member is not None
            assert self.member.key in known
            # Whoever is here already knows the same, by what it was given and by news.
            assert self.desk.crowd.rosters.setdefault(self.name.text, known) == known
        if self.wants_out:
            self.leave()

    def leave(self) -> None:
        if not self.is_in:
            self.wants_out = True
            return
        self.is_in = False
        self.exit = self.desk.attendance.rosters.leave(APP, self.name, self.member)
        if self.name.text not in self.desk.attached:
            self.desk.crowd.rosters.pop(self.name.text, None)
