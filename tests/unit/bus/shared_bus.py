"""A bus in memory over which several Brokers of one process meet: a cluster without an engine.

A :class:`Mesh` is what all nodes agree on. Each of them has a :class:`SharedBus`: whatever it asks
is on its way for ``delay_s``, is done in one step of the mesh, and what comes of it is on its way
to each node for as long, in order, news before answers. So it keeps the promises of
``cachecast.bus.seam`` and is as slow as a test likes. Links may be cut and come back.
"""

from __future__ import annotations

from collections import Counter, deque
from math import inf

import msgspec
import trio

from cachecast.bus.receipt import Receipt
from cachecast.bus.seam import Entry, Exit
from cachecast.channels.presence import PresenceRoster
from cachecast.errors import BusError, SubscriptionError
from cachecast.events import AppEvent


class _Who:
    """Whom a connection brings into a presence channel, as a part of a key: by the id alone."""

    def __init__(self, member):
        self.member = member
        self.key = None if member is None else member.key

    def __eq__(self, other):
        return self.key == other.key

    def __hash__(self):
        return hash(self.key)


NOTHING = "The other nodes cannot be reached: nothing was published"
PERHAPS = "The other nodes cannot be reached: it may have been published all the same"


class _Line:
    """Functions that are called in order, each so long after it was put in."""

    def __init__(self, mesh):
        self.mesh = mesh
        self.items = deque()
        self.wakeup = trio.Event()

    def put(self, function):
        self.items.append((trio.current_time() + self.mesh.delay_s, function))
        self.wakeup.set()

    async def run(self):
        while True:
            if not self.items:
                self.wakeup = trio.Event()
                await self.wakeup.wait()
                continue
            due = self.items[0][0]
            if due > trio.current_time():
                await trio.sleep_until(due)
            else:
                await trio.lowlevel.checkpoint()
            # A cut may have emptied it meanwhile.
            if self.items and self.items[0][0] <= trio.current_time():
                self.items.popleft()[1]()


class Mesh:
    """The truth of a cluster.

    Attributes:
        delay_s: seconds from a node to here, and back.
        max_members: of a presence channel.
        events: app id and event of what webhooks are told, in order.
        courier: the bus whose node brings them; None: nobody's does.
        calls: names of what was asked, in order.
    """

    def __init__(self, delay_s=0.01, max_members=100):
        self.delay_s = delay_s
        self.max_members = max_members
        self.buses = []
        self.events = []
        self.courier = None
        self.calls = []
        self.version = 0
        self.values = {}  # channel -> (version, envelope)
        self.attached = {}  # channel -> bus -> token
        self.held = {}  # bus -> Counter of (app, name, member)
        self.online = {}  # (app, user) -> Counter of buses
        self.watchers = {}  # (app, user) -> Counter of buses
        self.misses = {}
        self.crowded = {}  # channel -> set of buses
        self.totals = {}

    def join(self):
        """One node's bus."""
        bus = SharedBus(self)
        self.buses.append(bus)
        self.held[bus] = Counter()
        return bus

    # --- what is true

    def holders(self, key):
        return [
            who.member
            for held in self.held.values()
            for (found, _, who), n in held.items()
            if found == key
            for _ in range(n)
        ]

    def count(self, key):
        return len(self.holders(key))

    def members(self, key):
        found = {}
        for member in self.holders(key):
            if member is not None:
                found.setdefault(member.key, member)
        return found

    # --- telling

    def tell(self, key, function, *args):
        """Call a function of all buses that are attached to a channel, with their token first."""
        for bus, token in self.attached.get(key, {}).items():
            bus.hear(function, key, token, *args)

    def happen(self, app_id, event):
        self.events.append((app_id, event))
        if self.courier is not None:
            courier = self.courier
            courier.hear(lambda b: b.node.take_hook(app_id, event, Receipt()))

    # --- done here, in one step

    def publish(self, envelopes):
        for envelope in envelopes:
            self.version += 1
            key = (envelope.app_id, envelope.name.text)
            sent = msgspec.structs.replace(
                envelope, published_at=trio.current_time(), deadline=envelope.deadline
            )
            if envelope.name.is_cache and envelope.is_server_side:
                self.values[key] = (self.version, sent)
                self.misses.pop(key, None)
            self.tell(key, SharedBus.on_publication, self.version, sent)

    def attach(self, bus, key, token):
        self.attached.setdefault(key, {})[bus] = token
        return self.values.get(key)

    def detach(self, bus, key, token):
        if self.attached.get(key, {}).get(bus) == token:
            del self.attached[key][bus]

    def enter(self, bus, key, name, member):
        before = self.members(key)
        if member is not None and member.key not in before and len(before) >= self.max_members:
            raise SubscriptionError(
                f"The presence channel has its maximum of {self.max_members} members",
                channel=key[1],
                kind="LimitReached",
                status=4100,
            )
        is_occupied = not self.count(key) and not name.is_hidden
        self.held[bus][key, name, _Who(member)] += 1
        is_new = member is not None and member.key not in before
        if is_occupied:
            self.happen(key[0], AppEvent("channel_occupied", key[1]))
        if is_new:
            self.happen(key[0], AppEvent("member_added", key[1], user_id=member.key))
            self.tell(key, SharedBus.on_member, "member_added", member)
        self.tell(key, SharedBus.on_count, self.count(key))
        return Entry(is_occupied, is_new), self.members(key)

    def leave(self, bus, key, name, member):
        held = self.held[bus]
        who = _Who(member)
        if not held[key, name, who]:
            return Exit(is_vacated=False, is_member_gone=False)
        held[key, name, who] -= 1
        held += Counter()
        self.held[bus] = held
        is_gone = member is not None and member.key not in self.members(key)
        is_vacated = not self.count(key) and not name.is_hidden
        if is_gone:
            self.happen(key[0], AppEvent("member_removed", key[1], user_id=member.key))
            self.tell(key, SharedBus.on_member, "member_removed", member)
        if is_vacated:
            self.happen(key[0], AppEvent("channel_vacated", key[1]))
        self.tell(key, SharedBus.on_count, self.count(key))
        return Exit(is_vacated, is_gone)

    def count_user(self, bus, key, n):
        counter = self.online.setdefault(key, Counter())
        was_online = counter.total() > 0
        counter[bus] += n
        if (counter.total() > 0) != was_online:
            change = "offline" if was_online else "online"
            for watcher, times in self.watchers.get(key, Counter()).items():
                if times > 0:
                    watcher.hear(lambda b: b.node.user_changed(*key, change))

    def watch(self, bus, app_id, user_ids, n):
        for user_id in user_ids:
            self.watchers.setdefault((app_id, user_id), Counter())[bus] += n
        return frozenset(u for u in user_ids if self.online.get((app_id, u), Counter()).total() > 0)

    def terminate(self, key):
        for bus in self.buses:
            bus.hear(lambda b: b.node.end_user(*key))
        return self.online.get(key, Counter()).total()

    def miss(self, key):
        if self.misses.get(key, -inf) > trio.current_time() or key in self.values:
            return False
        self.misses[key] = inf
        self.happen(key[0], AppEvent("cache_miss", key[1]))
        return True

    def rearm(self, key, after_s):
        if key in self.misses:
            self.misses[key] = trio.current_time() + after_s

    def crowd(self, bus, key, is_crowded):
        buses = self.crowded.setdefault(key, set())
        (buses.add if is_crowded else buses.discard)(bus)
        for other in self.buses:
            other.hear(SharedBus.on_crowded, key, frozenset(buses - {other}))

    def channels(self, app_id, prefix):
        keys = {k for held in self.held.values() for k, name, _ in held if not name.is_hidden}
        return {
            key[1]: self.count(key)
            for key in sorted(keys)
            if key[0] == app_id and key[1].startswith(prefix)
        }

    def read(self, key):
        found = self.values.get(key)
        return None if found is None else found[1]


class SharedBus:
    """One node's way to the mesh."""

    is_shared = True

    @staticmethod
    def statistics():
        return ()

    def __init__(self, mesh):
        self.mesh = mesh
        self.terms = {}
        self.node = None
        self.is_down = False
        self.is_closed = False
        self._out = _Line(mesh)
        self._in = _Line(mesh)
        self._open = {}  # receipt -> text of its fault, if the link is cut
        self._attached = {}  # channel -> [times, token, version, roster or None]
        self._tokens = 0
        self.held = Counter()
        self.signed_in = Counter()
        self.watched = Counter()
        self._crowded = {}

    def serve_apps(self, terms):
        self.terms = terms

    async def start(self, node, nursery):
        await trio.lowlevel.checkpoint()
        self.node = node
        nursery.start_soon(self._out.run)
        nursery.start_soon(self._in.run)

    async def aclose(self):
        await trio.lowlevel.checkpoint()
        self.is_closed = True
        self._lose()
        self._in.items.clear()
        self._out.items.clear()
        self.held.clear()
        self.signed_in.clear()
        self.watched.clear()
        self._settle_with_mesh()
        for attached in self.mesh.attached.values():
            attached.pop(self, None)

    # --- links

    def cut(self, reason="the link is cut"):
        """The mesh cannot be reached from this node, nor this node from the mesh."""
        self.is_down = True
        self._in.items.clear()
        self._out.items.clear()
        self._lose()
        crowded, self._crowded = self._crowded, {}
        for key in crowded:
            self.node.crowd_eased(*key)
        self.node.went_down(reason)

    def _lose(self):
        waiting, self._open = self._open, {}
        for receipt, text in waiting.items():
            fault = BusError(text)
            fault.was_maybe_done = text == PERHAPS
            receipt.fail(fault)

    def heal(self):
        """Back again: everything attached is read again, and what it holds is compared."""
        self.is_down = False
        self._settle_with_mesh()
        for key, state in self._attached.items():
            found = self.mesh.attach(self, key, state[1])
            if found is not None:
                self._take_value(state, *found)
            if state[3] is not None:
                members = self.mesh.members(key)
                for member in state[3].members:
                    if member.key not in members:
                        self.on_member(key, state[1], "member_removed", member)
                for member in members.values():
                    self.on_member(key, state[1], "member_added", member)
        self.node.went_up()

    def _settle_with_mesh(self):
        mesh = self.mesh
        for key, name, who in (mesh.held[self] - self.held).elements():
            mesh.leave(self, key, name, who.member)
        for key, name, who in (self.held - mesh.held[self]).elements():
            mesh.enter(self, key, name, who.member)
        for key, counter in mesh.online.items():
            if counter[self] != self.signed_in[key]:
                mesh.count_user(self, key, self.signed_in[key] - counter[self])
        for key, counter in mesh.watchers.items():
            counter[self] = self.watched[key]

    def hear(self, function, *args):
        """Have something happen here, behind what is on its way already."""
        if not (self.is_down or self.is_closed):
            self._in.put(lambda: function(self, *args))

    def _ask(self, name, do, take=lambda answer: answer, fault=NOTHING):
        """Have the mesh do something; the receipt is fulfilled with what ``take`` makes of it."""
        self.mesh.calls.append(name)
        receipt = Receipt()
        if self.is_down or self.is_closed:
            receipt.fail(BusError(NOTHING))
            return receipt
        self._open[receipt] = fault

        def answer(value):
            self._open.pop(receipt, None)
            receipt.fulfil(take(value))

        def refuse(error):
            self._open.pop(receipt, None)
            receipt.fail(error)

        def carry_out():
            try:
                value = do()
            except SubscriptionError as error:
                refused = error
                self.hear(lambda _: refuse(refused))
            else:
                self.hear(lambda _: answer(value))

        self._out.put(carry_out)
        return receipt

    def _send(self, do):
        if not (self.is_down or self.is_closed):
            self._out.put(do)

    # --- what is heard

    def _state(self, key, token):
        state = self._attached.get(key)
        return state if state is not None and state[1] == token else None

    def on_publication(self, key, token, version, envelope):
        state = self._state(key, token)
        if state is not None:
            self._take_value(state, version, envelope)

    def _take_value(self, state, version, envelope):
        if version > state[2]:
            state[2] = version
            self.node.deliver(envelope)

    def on_member(self, key, token, change, member):
        state = self._state(key, token)
        if state is None or state[3] is None:
            return
        roster = state[3]
        changed = roster.put(member) if change == "member_added" else roster.discard(member.key)
        if changed:
            self.node.member_changed(*key, change, member)

    def on_count(self, key, token, count):
        if self._state(key, token) is not None:
            self.node.count_changed(*key, count)

    def on_crowded(self, key, others):
        was_crowded = bool(self._crowded.pop(key, None))
        if others:
            self._crowded[key] = others
        elif was_crowded:
            self.node.crowd_eased(*key)

    # --- the seam

    def publish(self, envelopes):
        envelopes = list(envelopes)
        return self._ask("publish", lambda: self.mesh.publish(envelopes), fault=PERHAPS)

    def is_crowded(self, app_id, channel):
        return (app_id, channel) in self._crowded

    def note_crowded(self, app_id, channel, *, is_crowded):
        self._send(lambda: self.mesh.crowd(self, (app_id, channel), is_crowded))

    def attach(self, app_id, name):
        key = (app_id, name.text)
        state = self._hold(key, name)
        receipt = self._ask("attach", lambda: self.mesh.attach(self, key, state[1]))
        return self._release_if_lost(receipt.then(lambda found: self._begin(state, found)), key)

    def _hold(self, key, name):
        state = self._attached.get(key)
        if state is None:
            self._tokens += 1
            roster = PresenceRoster() if name.is_presence else None
            state = self._attached[key] = [0, self._tokens, 0, roster]
        state[0] += 1
        return state

    def _begin(self, state, found):
        if found is not None:
            self._take_value(state, *found)

    def _release_if_lost(self, receipt, key):
        receipt.when_done(lambda: receipt.fault is not None and self._release(key))
        return receipt

    def _release(self, key):
        state = self._attached[key]
        state[0] -= 1
        if not state[0]:
            del self._attached[key]
            token = state[1]
            self.node.forget(*key)
            self._send(lambda: self.mesh.detach(self, key, token))

    def detach(self, app_id, name):
        self._release((app_id, name.text))

    def enter(self, app_id, name, member):
        key = (app_id, name.text)
        state = self._hold(key, name)

        def do():
            found = self.mesh.attach(self, key, state[1])
            return found, *self.mesh.enter(self, key, name, member)

        def take(answer):
            found, entry, members = answer
            self.held[key, name, _Who(member)] += 1
            self._begin(state, found)
            if state[3] is not None:
                for other in members.values():
                    state[3].put(other)
            return msgspec.structs.replace(entry, roster=state[3])

        return self._release_if_lost(self._ask("enter", do, take), key)

    def leave(self, app_id, name, member):
        key = (app_id, name.text)
        self.held[key, name, _Who(member)] -= 1
        self.held += Counter()
        receipt = self._ask("leave", lambda: self.mesh.leave(self, key, name, member))
        self._release(key)
        left = Receipt()  # it never fails
        receipt.when_done(
            lambda: left.fulfil(
                Exit(is_vacated=False, is_member_gone=False) if receipt.fault else receipt.value
            )
        )
        return left

    def sign_in(self, app_id, user_id):
        key = (app_id, user_id)

        def take(_):
            self.signed_in[key] += 1

        return self._ask("sign_in", lambda: self.mesh.count_user(self, key, 1), take)

    def sign_out(self, app_id, user_id):
        key = (app_id, user_id)
        self.signed_in[key] -= 1
        self._send(lambda: self.mesh.count_user(self, key, -1))

    def watch(self, app_id, user_ids):
        def take(online):
            for user_id in user_ids:
                self.watched[app_id, user_id] += 1
            return online

        return self._ask("watch", lambda: self.mesh.watch(self, app_id, user_ids, 1), take)

    def unwatch(self, app_id, user_ids):
        for user_id in user_ids:
            self.watched[app_id, user_id] -= 1
        self._send(lambda: self.mesh.watch(self, app_id, user_ids, -1))

    def terminate(self, app_id, user_id):
        return self._ask("terminate", lambda: self.mesh.terminate((app_id, user_id)))

    def note_miss(self, app_id, channel):
        return self._ask("note_miss", lambda: self.mesh.miss((app_id, channel)))

    def rearm_miss(self, app_id, channel, after_s):
        self._ask("rearm_miss", lambda: self.mesh.rearm((app_id, channel), after_s))

    def read(self, app_id, channel):
        return self._ask("read", lambda: self.mesh.read((app_id, channel)))

    def channels(self, app_id, prefix):
        return self._ask("channels", lambda: self.mesh.channels(app_id, prefix))

    def users(self, app_id, channel):
        return self._ask("users", lambda: list(self.mesh.members((app_id, channel))))

    def members(self, app_id, channel):
        return self._ask("members", lambda: list(self.mesh.members((app_id, channel)).values()))

    def counts(self, app_id, channels):
        keys = [(app_id, channel) for channel in channels]
        return self._ask(
            "counts", lambda: [(self.mesh.count(k), len(self.mesh.members(k))) for k in keys]
        )

    def total(self, gauge, app_id, mine):
        numbers = self.mesh.totals.setdefault((gauge, app_id), {})
        numbers[self] = mine
        return sum(numbers.values())

    def hook(self, app_id, event):
        self._send(lambda: self.mesh.happen(app_id, event))
