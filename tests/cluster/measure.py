"""What the pieces of the bus cost: ``python -m tests.cluster.measure``.

CPU, not rates: of this process by ``time.process_time``, of the engine by its own count for each
command (INFO commandstats). One line a figure, for Redis and Valkey; figures of a busy machine are
good for ratios only.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import trio

from cachecast.bus.calls import MAX_KEYS, Facts, portions
from cachecast.bus.functions import Functions
from cachecast.bus.record import Record, read_value
from cachecast.bus.resp import Connection
from cachecast.bus.shards import Keys
from tests.cluster.engines import ENGINES, serving

if TYPE_CHECKING:
    from cachecast.bus.calls import Call

APP = "4242"
PAYLOAD = b"x" * 256
TO = Functions(Keys())


class Bench:
    """A connection for commands and one for messages."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.epoch, self.session, self.number = 0, "", 0

    async def begin(self, *, in_grace: bool = False) -> None:
        """Say hello, as the first node of an epoch."""
        if not await self.ask(TO.is_loaded()):
            await self.ask(TO.load())
        facts = Facts(node="n", nonce="1", primaries=("p/0",), apps_with_webhooks=(APP,))
        call = TO.hello(
            facts,
            seen_epoch=self.epoch + 1,
            session="",
            lease_ms=3_600_000,
            grace_ms=60_000 if in_grace else 0,
        )
        found = await self.ask(call)
        self.epoch, self.session = found.epoch, found.session

    async def ask(self, call: Call[Any]) -> Any:
        return call.read(await self.connection.call(*call.arguments))

    def publish(self, n: int = 1, payload: bytes = PAYLOAD, channels: int = 1000) -> Call[Any]:
        self.number += 1
        first = self.number * n
        events = [
            TO.event(APP, f"cache-{(first + at) % channels}", payload, lifetime_ms=600_000)
            for at in range(n)
        ]
        return TO.publish(self.epoch, self.session, self.number, events)

    async def all_at_once(self, calls: list[Call[Any]], width: int) -> None:
        """With so many under way, by callback, and no task for each."""
        left, position = len(calls), 0
        done = trio.Event()

        def next_one(_: Any) -> None:
            nonlocal left, position
            left -= 1
            if position < len(calls):
                position += 1
                self.connection.send(calls[position - 1].arguments, next_one)
            elif not left:
                done.set()

        left += min(width, len(calls))
        for _ in range(min(width, len(calls))):
            next_one(None)
        await done.wait()

    async def engine_us(self, name: str = "fcall") -> tuple[int, float]:
        """Calls and microseconds in the engine, since the last RESETSTAT."""
        text = (await self.connection.call("INFO", "commandstats")).decode()
        line = next(line for line in text.splitlines() if line.startswith(f"cmdstat_{name}:"))
        fields = dict(pair.split("=") for pair in line.partition(":")[2].split(","))
        return int(fields["calls"]), float(fields["usec_per_call"])


def report(what: str, us: float, unit: str = "us") -> None:
    print(f"  {what:<66}{us:>9.1f} {unit}")


async def clients_side(bench: Bench, news: Connection, heard: list[int]) -> None:
    """What this process pays."""
    for what, n, width, size in (
        ("one call at a time, awaited", 2_000, 0, 1),
        ("32 under way, by callback", 20_000, 32, 1),
        ("events, 100 in a call, 4 calls under way", 400, 4, 100),
    ):
        calls = [bench.publish(size) for _ in range(n)]
        await bench.connection.call("CONFIG", "RESETSTAT")
        began = time.process_time()
        if width:
            await bench.all_at_once(calls, width)
        else:
            for call in calls:
                await bench.connection.call(*call.arguments)
        spent = (time.process_time() - began) / n / size
        _, engine = await bench.engine_us()
        report(f"publish, {what}: CPU here", spent * 1e6)
        report(f"publish, {what}: in the engine", engine / size)
    began = time.process_time()
    for _ in range(20_000):
        bench.publish()
    report("making a publish call, included nowhere above", (time.process_time() - began) / 0.02)
    topic = TO.keys.topic(APP, "cache-0")
    calls = [bench.publish(100, channels=1) for _ in range(500)]
    alone = await cpu_of(bench, [bench.publish(100, channels=1) for _ in range(500)])
    news.subscribe((topic,))
    await news.call("PING")
    both = await cpu_of(bench, calls)
    await news.call("PING")
    report(f"received message ({heard[0]} of 50000), parsed and read", (both - alone) * 1e6 / 5e4)


async def cpu_of(bench: Bench, calls: list[Call[Any]]) -> float:
    began = time.process_time()
    await bench.all_at_once(calls, 4)
    return time.process_time() - began


async def engines_side(bench: Bench) -> None:
    """What the longest call of each kind takes in the engine."""

    async def time_of(what: str, calls: list[Call[Any]], name: str = "fcall") -> None:
        await bench.connection.call("CONFIG", "RESETSTAT")
        for call in calls:
            await bench.ask(call)
        report(f"{what}: in the engine, a call", (await bench.engine_us(name))[1])

    epoch, session = bench.epoch, bench.session
    keys = [TO.keys.value(APP, f"cache-{number}") for number in range(1000)]
    await time_of("read 100 values of 256 B", [TO.read(epoch, part) for part in portions(keys)])
    await time_of("free 500 keys", [TO.free(part) for part in portions(keys, 500)] * 5, "exists")
    many = [(f"presence-{n % 20}", f"user-{n}") for n in range(20_000)]
    enters = [
        TO.enter(epoch, session, "m", APP, user, name=channel, info=b"x" * 60)
        for channel, user in many
    ]
    await time_of("a member joins", enters)
    roster = [
        TO.enter(epoch, session, "m", APP, "user-0", name="presence-0", wants_roster=True)
    ] * 50
    await time_of("a member joins and gets a page of 1,000 members", roster)
    await time_of("a page of a roster", [TO.page(epoch, "m", APP, "presence-1")] * 50)
    leaves = [
        TO.leave(epoch, session, "m", APP, user, name=channel) for channel, user in many[:5000]
    ]
    await time_of("a member leaves", leaves)
    await time_of("a beat", [TO.beat(epoch, session, 3_600_000, [(APP, 1)])] * 500)
    await time_of("a miss is noted", [TO.note_miss(epoch, APP, f"x-{n}") for n in range(2000)])
    await time_of("a courier gets 200 events", [TO.collect(epoch, session, APP, 60_000)] * 50)
    await bench.ask(TO.retire(epoch, session))
    await time_of("reap 100 entries, all announced", [TO.reap(epoch)] * 100)
    large = [bench.publish(100, b"x" * 10_000) for _ in range(20)]
    await time_of("publish 100 events of 10 KB (the limit)", large)


async def reread(bench: Bench) -> None:
    """A reconnect's re-reading of all that is attached."""
    n = 50_000
    names = [f"cache-{number}" for number in range(n)]
    for part in portions(names):
        bench.number += 1
        events = [TO.event(APP, name, PAYLOAD, lifetime_ms=600_000) for name in part]
        await bench.ask(TO.publish(bench.epoch, bench.session, bench.number, events))
    keys = [TO.keys.value(APP, name) for name in names]
    began, cpu = time.monotonic(), time.process_time()
    calls = [TO.read(bench.epoch, part) for part in portions(keys, MAX_KEYS)]
    records = []
    left = [len(calls)]
    done = trio.Event()

    def take(reply: Any) -> None:
        records.extend(calls[0].read(reply)[1])
        left[0] -= 1
        if not left[0]:
            done.set()

    for call in calls:
        bench.connection.send(call.arguments, take)
    await done.wait()
    assert len(records) == n
    report(f"re-reading {n} channels", (time.monotonic() - began) * 1e3, "ms")
    report("  CPU here, a channel", (time.process_time() - cpu) / n * 1e6)


async def restore(bench: Bench) -> None:
    """Within the grace: what is offered and entered again."""
    copies = [
        (TO.keys.value(APP, f"r-{n}"), Record(1, n + 1, 1, 600_000, "", PAYLOAD), 500_000)
        for n in range(10_000)
    ]
    await bench.connection.call("CONFIG", "RESETSTAT")
    for part in portions(copies):
        await bench.ask(TO.offer(bench.epoch, part))
    report("offer 100 copies: in the engine, a call", (await bench.engine_us())[1])


async def main() -> None:
    for engine in ENGINES:
        print(engine)
        with serving(engine, "--client-output-buffer-limit", "pubsub 0 0 0") as server:
            heard = [0]

            def hear(_: bytes, payload: bytes, heard: list[int] = heard) -> None:
                read_value(payload)
                heard[0] += 1

            path = str(server.path)
            async with trio.open_nursery() as nursery:
                commands = Connection(await trio.open_unix_socket(path))
                news = Connection(await trio.open_unix_socket(path), on_message=hear)
                for connection in (commands, news):
                    nursery.start_soon(connection.run)
                    await connection.call("HELLO", 3)
                bench = Bench(commands)
                await bench.begin(in_grace=True)
                await restore(bench)
                await bench.begin()
                await clients_side(bench, news, heard)
                await engines_side(bench)
                await bench.begin()
                await reread(bench)
                nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
