"""Silence, noticed: a wheel of connections, stepped by hand."""

from __future__ import annotations

import itertools

import pytest
import trio

from cachecast.channels.outbox import Backlog
from cachecast.channels.waiting import PACE_BYTES
from cachecast.config import BrokerConfig
from cachecast.protocol import frames
from cachecast.tasks.heartbeat import CLOSINGS_PER_STEP, CONNECTIONS_PER_STEP, Heartbeat
from tests.harness.lower import Client, FakeSocket, make_app, make_outbox


class Closings:
    """What the Broker does for the heartbeat: end a connection, and have it forgotten."""

    def __init__(self):
        self.codes = []
        self.heartbeat = None

    def disconnect(self, connection, code, message):
        self.codes.append((connection.session.socket_id, code, message))
        self.heartbeat.unwatch(connection)


def make_heartbeat(*, clock, backlog=None, **fields):
    closings = Closings()
    heartbeat = Heartbeat(
        BrokerConfig(**{"apps": (make_app(),), "activity_timeout_s": 120.0} | fields),
        Backlog() if backlog is None else backlog,
        clock,
        closings,
    )
    closings.heartbeat = heartbeat
    return heartbeat, closings


class Time:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


async def _pass(heartbeat, time, until):
    """One step a second, as the task does."""
    while time.now < until:
        time.now += 1.0
        await heartbeat.step()


def _pings(client):
    return sum(opcode == frames.PING for opcode, _ in client.socket.frames)


async def test_a_ping_after_the_activity_timeout_and_4201_after_the_pong_timeout():
    time = Time()
    heartbeat, closings = make_heartbeat(clock=time)
    client = Client()
    heartbeat.watch(client.connection)

    await _pass(heartbeat, time, 119)
    assert _pings(client) == 0
    await _pass(heartbeat, time, 120)
    assert _pings(client) == 1
    await _pass(heartbeat, time, 149)
    assert closings.codes == []
    await _pass(heartbeat, time, 150)
    assert closings.codes == [("1234.1234", 4201, "Pong reply not received")]


async def test_one_that_is_not_listened_to_is_not_judged_by_what_it_says():
    """While it is paced only its outbox judges it; afterwards it has the whole time again."""
    time = Time()
    heartbeat, closings = make_heartbeat(clock=time)
    client = Client()
    heartbeat.watch(client.connection)
    await _pass(heartbeat, time, 130)
    assert _pings(client) == 1
    client.socket.room = 0
    client.outbox.put(b"x" * 2 * PACE_BYTES, is_asked=True)

    await _pass(heartbeat, time, 1_000)
    assert closings.codes == []
    client.socket.room = float("inf")
    while client.outbox.is_pacing:
        client.outbox.flush(time.now)
    client.socket.taken.clear()
    await _pass(heartbeat, time, 1_090)
    assert (_pings(client), closings.codes) == (0, [])
    await _pass(heartbeat, time, 1_121)
    assert _pings(client) == 1
    await _pass(heartbeat, time, 1_151)
    assert [code for _, code, _ in closings.codes] == [4201]


async def test_the_pong_has_its_whole_time_however_late_the_ping_was():
    """The machine slept for an hour: one ping for everybody, and thirty seconds for the answer."""
    time = Time()
    heartbeat, closings = make_heartbeat(clock=time)
    client = Client()
    heartbeat.watch(client.connection)

    time.now = 3_600.0
    await heartbeat.step()
    assert _pings(client) == 1
    await _pass(heartbeat, time, 3_629)
    assert closings.codes == []
    await _pass(heartbeat, time, 3_630)
    assert [code for _, code, _ in closings.codes] == [4201]


async def test_a_pause_in_the_midst_of_pinging_takes_nobodys_time():
    """The process was stopped between two pings, and the later ones closed right behind theirs."""
    time = Time()
    clients = [Client() for _ in range(2)]

    def clock():
        return time.now + (40.0 if any(map(_pings, clients)) else 0.0)

    heartbeat, closings = make_heartbeat(clock=clock)
    for client in clients:
        heartbeat.watch(client.connection)
    time.now = 120.0
    await heartbeat.step()
    assert [_pings(client) for client in clients] == [1, 1]

    await heartbeat.step()
    await _pass(heartbeat, time, 149)
    assert closings.codes == []
    await _pass(heartbeat, time, 150)
    assert [code for _, code, _ in closings.codes] == [4201, 4201]


@pytest.mark.parametrize("answered_at", [120.0, 121.0, 149.0])
async def test_any_sign_of_life_answers_the_ping(answered_at):
    time = Time()
    heartbeat, closings = make_heartbeat(clock=time)
    client = Client()
    heartbeat.watch(client.connection)

    await _pass(heartbeat, time, max(120, answered_at))
    client.session.active_at = time.now
    await _pass(heartbeat, time, answered_at + 119)
    assert _pings(client) == 1
    await _pass(heartbeat, time, answered_at + 122)

    assert _pings(client) == 2
    assert closings.codes == []


async def test_4202_is_for_those_who_need_not_pong():
    time = Time()
    heartbeat, closings = make_heartbeat(clock=time, max_inactivity_s=1_000.0)
    client = Client()
    client.connection.must_pong = False
    heartbeat.watch(client.connection)

    await _pass(heartbeat, time, 999)
    assert (closings.codes, _pings(client)) == ([], 1)
    await _pass(heartbeat, time, 1_000)
    assert [code for _, code, _ in closings.codes] == [4202]


async def test_4009_is_exact_to_the_second_and_only_for_those_without_a_signature():
    time = Time()
    heartbeat, closings = make_heartbeat(clock=time)
    client = Client()
    client.connection.authorize_by = 30.0
    heartbeat.watch(client.connection)

    await _pass(heartbeat, time, 29)
    assert closings.codes == []
    await _pass(heartbeat, time, 30)
    assert [code for _, code, _ in closings.codes] == [4009]


async def test_a_ping_that_meets_a_broken_socket_leaves_nothing_behind():
    """The connection is forgotten in the middle of its own check; it must not be put back."""
    time = Time()
    heartbeat, _ = make_heartbeat(clock=time)
    client = Client()
    client.socket.error = ConnectionResetError()
    client.socket.on_event = lambda _: heartbeat.unwatch(client.connection)
    heartbeat.watch(client.connection)

    await _pass(heartbeat, time, 400)

    assert len(heartbeat._wheel) == 0
    assert heartbeat._pinged_at == {}


class SlowReader:
    """Whoever reads the sockets, and has not got to all of them."""

    max_wait_s = 2.5
    wait_s = 1.5

    def __init__(self, until):
        self.until = until
        self.apps = set()

    def read_until(self, app_id=None):
        self.apps.add(app_id)
        return self.until


async def test_nobody_is_judged_for_silence_before_what_has_arrived_was_read():
    """After a pause of the process the answers lie in the sockets."""
    time = Time()
    backlog = Backlog()
    heartbeat, closings = make_heartbeat(clock=time, backlog=backlog, max_inactivity_s=1_000.0)
    pinged, old, unsigned = (Client(socket_id=f"1.{n}") for n in range(3))
    old.connection.must_pong = False
    unsigned.connection.authorize_by = 1_000.0
    stalled, closing = FakeSocket(0), FakeSocket(0)
    leaving = make_outbox(closing, stall_timeout_s=1e9)
    for client in (pinged, old, unsigned):
        heartbeat.watch(client.connection)
    await _pass(heartbeat, time, 120)
    heartbeat.readers.append(reader := SlowReader(120.0))
    make_outbox(stalled, backlog=backlog, stall_timeout_s=30).put(b"x")
    heartbeat.watch_closing(leaving, time.now)

    await _pass(heartbeat, time, 5_000)
    assert closings.codes == []
    assert "on_slow" not in stalled.events
    assert closing.events == []
    assert reader.apps == {None, "3"}

    reader.until = 5_000.0
    heartbeat.readers.append(SlowReader(5_001.0))  # not the one that lags
    await _pass(heartbeat, time, 5_031)
    assert sorted(code for _, code, _ in closings.codes) == [4009, 4201, 4202]
    assert closing.events[-1] == "on_broken"
    reader.until = 5_031.0
    await _pass(heartbeat, time, 5_032)
    assert stalled.events[-1] == "on_slow"


async def test_pong_that_lay_in_the_socket_saves_its_client():
    time = Time()
    heartbeat, closings = make_heartbeat(clock=time)
    client = Client()
    heartbeat.watch(client.connection)
    await _pass(heartbeat, time, 120)
    heartbeat.readers.append(reader := SlowReader(120.0))
    time.now = 1_000.0
    await heartbeat.step()
    client.session.active_at = reader.until = time.now
    await _pass(heartbeat, time, 1_119)

    assert closings.codes == []
    assert _pings(client) == 1


async def test_many_who_have_not_been_read_do_not_make_a_step_endless():
    time = Time()
    heartbeat, closings = make_heartbeat(clock=time)
    for n in range(3 * CONNECTIONS_PER_STEP):
        heartbeat.watch(Client(socket_id=f"1.{n}").connection)
    heartbeat.readers.append(SlowReader(0.0))
    await _pass(heartbeat, time, 200)

    assert closings.codes == []


async def test_what_waits_to_be_read_is_the_worst_of_all_who_read():
    heartbeat, _ = make_heartbeat(clock=Time())
    assert (heartbeat.ready_wait_s, heartbeat.max_ready_wait_s) == (0, 0)
    heartbeat.readers.append(SlowReader(0.0))
    assert (heartbeat.ready_wait_s, heartbeat.max_ready_wait_s) == (1.5, 2.5)


async def test_after_a_pause_everybody_gets_one_second_to_be_heard(autojump_clock):
    """Those too who are read by a host service's own tasks, which know no reader."""
    pauses = 0.0
    heartbeat, closings = make_heartbeat(clock=lambda: trio.current_time() + pauses)
    client = Client()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heartbeat.run)
        await trio.sleep(0.5)
        client.session.active_at = heartbeat._clock()
        heartbeat.watch(client.connection)
        await trio.sleep(125)
        assert _pings(client) == 1
        pauses = 3_600.0  # the machine slept
        await trio.sleep(1.2)
        assert closings.codes == []
        await trio.sleep(1)
        assert [code for _, code, _ in closings.codes] == [4201]
        nursery.cancel_scope.cancel()


async def test_step_yields_where_one_closing_is_much_work(monkeypatch):
    monkeypatch.setattr("cachecast.tasks.heartbeat.STEP_S", -1)  # every one of them
    time = Time()
    backlog = Backlog()
    heartbeat, closings = make_heartbeat(clock=time, backlog=backlog, max_inactivity_s=1.0)
    for n in range(20):
        client = Client(socket_id=f"1.{n}")
        client.connection.authorize_by = 2.0
        heartbeat.watch(client.connection)
    gone = Client(socket_id="2.1")
    gone.connection.authorize_by = 2.0
    heartbeat.watch(gone.connection)
    sockets = [FakeSocket(0) for _ in range(20)]
    for socket in sockets:
        make_outbox(socket, backlog=backlog, stall_timeout_s=1).put(b"x")
    done = []

    async def watch():
        while len(done) < 60:
            done.append(len(closings.codes) + sum("on_slow" in each.events for each in sockets))
            if done[-1] == 3:
                gone.connection.outbox.discard()  # ended in between, and must not be put back
            await trio.lowlevel.checkpoint()

    await _pass(heartbeat, time, 1)
    time.now = 3.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(heartbeat.step)

    assert max(b - a for a, b in itertools.pairwise(done)) <= 2
    assert done[-1] >= 40
    assert len(heartbeat._wheel) == 0


async def test_an_unwatched_connection_is_forgotten():
    time = Time()
    heartbeat, closings = make_heartbeat(clock=time)
    client = Client()
    heartbeat.watch(client.connection)
    await _pass(heartbeat, time, 125)

    heartbeat.unwatch(client.connection)
    await _pass(heartbeat, time, 400)

    assert closings.codes == []
    assert len(heartbeat._wheel) == 0
    assert heartbeat._pinged_at == {}


async def test_a_step_yields_after_a_bounded_number_of_connections():
    """Invariant 10: no loop over connections runs longer than its budget."""
    time = Time()
    heartbeat, _ = make_heartbeat(clock=time)
    clients = [Client(socket_id=f"1.{n}") for n in range(3 * CONNECTIONS_PER_STEP)]
    for client in clients:
        heartbeat.watch(client.connection)
    time.now = 120.0
    pinged = []

    async def watch():
        for _ in range(5):
            pinged.append(sum(map(_pings, clients)))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(heartbeat.step)

    steps = [after - before for before, after in itertools.pairwise(pinged)]
    assert max(steps) <= 2 * CONNECTIONS_PER_STEP  # two may pass between two looks
    assert sum(map(_pings, clients)) == len(clients)


async def test_a_stalled_outbox_is_given_up_and_a_closing_one_broken_off():
    time = Time()
    backlog = Backlog()
    heartbeat, _ = make_heartbeat(clock=time, backlog=backlog)
    stalled, closing = FakeSocket(0), FakeSocket(0)
    slow = make_outbox(stalled, backlog=backlog, stall_timeout_s=30)
    slow.put(b"x")
    leaving = make_outbox(closing, backlog=backlog, stall_timeout_s=30)
    leaving.put(b"x")
    leaving.finish(b"y")
    heartbeat.watch_closing(leaving, 0.0)

    await _pass(heartbeat, time, 4)
    assert "on_broken" not in closing.events
    await _pass(heartbeat, time, 5)
    assert closing.events[-1] == "on_broken"
    await _pass(heartbeat, time, 30)
    assert "on_slow" not in stalled.events
    await _pass(heartbeat, time, 31)
    assert stalled.events[-1] == "on_slow"
    assert heartbeat._closing == {}


async def test_a_step_yields_after_a_bounded_number_of_closings():
    """A network that fails stalls thousands at once; leaving channels is work (invariant 10)."""
    time = Time()
    backlog = Backlog()
    heartbeat, _ = make_heartbeat(clock=time, backlog=backlog)
    sockets = [FakeSocket(0) for _ in range(3 * CLOSINGS_PER_STEP)]
    for socket in sockets:
        make_outbox(socket, backlog=backlog, stall_timeout_s=1).put(b"x")
    counts = []

    async def watch():
        for _ in range(7):
            counts.append(sum("on_slow" in socket.events for socket in sockets))
            await trio.lowlevel.checkpoint()

    await _pass(heartbeat, time, 1)
    time.now = 2.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        nursery.start_soon(heartbeat.step)

    assert max(b - a for a, b in itertools.pairwise(counts)) <= 2 * CLOSINGS_PER_STEP
    assert all("on_slow" in socket.events for socket in sockets)


async def test_lag_is_how_late_the_loop_woke_the_task(autojump_clock):
    heartbeat, _ = make_heartbeat(clock=trio.current_time)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(heartbeat.run)
        await trio.sleep(5.5)
        assert heartbeat.max_lag_s == 0
        autojump_clock.jump(3.0)
        await trio.testing.wait_all_tasks_blocked()
        assert heartbeat.lag_s == pytest.approx(2.5)
        nursery.cancel_scope.cancel()
