"""A Hypothesis state machine of the whole Broker, its histories judged by ``checker``.

Rules only write down what clients and publishers do; the story is played at the end, in one run
of Trio under a virtual clock. So a failing story is short, and it is printed as the steps taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule
from trio.testing import MockClock

from tests.simulation.world import CACHE_CHANNELS, CHANNELS, TTL_S, World, open_world

if TYPE_CHECKING:
    from collections.abc import Callable

clients = st.integers(0, 4)
channels = st.sampled_from(CHANNELS)
#: Seconds that a float holds exactly, as all others here are: sums of them have no rounding that
#: could put an instant on either side of a deadline.
MOMENT_S = 1 / 1024
#: Cache channels more often: they are what the promise is about.
busy_channels = st.sampled_from((*CACHE_CHANNELS, "cache-a", "cache-a", "normal"))


class BrokerMachine(RuleBasedStateMachine):
    """What clients, publishers, networks and machines do to a Broker."""

    def __init__(self) -> None:
        super().__init__()
        self.story: list[Callable[[World], Any]] = []

    def tell(self, step: Callable[[World], Any]) -> None:
        self.story.append(step)

    def tell_of(self, client: int, step: Callable[[World, Any], Any]) -> None:
        """A step of one client; there may be none by then."""

        def tell(world: World) -> None:
            if world.players:
                step(world, world.players[client % len(world.players)])

        self.story.append(tell)

    @initialize(n=st.integers(1, 4), joined=st.lists(channels, unique=True))
    def some_are_here(self, n: int, joined: list[str]) -> None:
        for number in range(n):
            self.newcomer_connects(speaks_msgpack=number == 1)
            for channel in joined:
                self.client_subscribes(number, channel)
        self.everything_settles()

    @rule(speaks_msgpack=st.booleans())
    def newcomer_connects(self, speaks_msgpack: bool) -> None:
        self.tell(lambda world: world.join(speaks_msgpack=speaks_msgpack))

    @rule(client=clients, channel=channels)
    def client_subscribes(self, client: int, channel: str) -> None:
        self.tell_of(client, lambda world, player: world.subscribe(player, channel))

    @rule(client=clients, channel=busy_channels)
    def late_joiner_reads(self, client: int, channel: str) -> None:
        self.client_subscribes(client, channel)

    @rule(client=clients, channel=busy_channels)
    def client_leaves_channel(self, client: int, channel: str) -> None:
        self.tell_of(client, lambda world, player: world.unsubscribe(player, channel))

    @rule(client=clients, channel=busy_channels)
    def client_comes_back_at_once(self, client: int, channel: str) -> None:
        self.client_leaves_channel(client, channel)
        self.client_subscribes(client, channel)

    @rule(client=clients, channel=busy_channels, n=st.integers(1, 3))
    def client_comes_back_in_the_middle_of_a_sweep(self, client: int, channel: str, n: int) -> None:
        """What is queued for its old subscription must not reach the new one."""
        for _ in range(n):
            self.server_publishes(channel, 0)
        self.client_comes_back_at_once(client, channel)

    @rule(client=clients, channel=busy_channels, n=st.integers(1, 3), n_bytes=st.integers(0, 200))
    def client_is_slow_while_values_come(
        self, client: int, channel: str, n: int, n_bytes: int
    ) -> None:
        self.client_becomes_slow(client, n_bytes)
        for _ in range(n):
            self.server_publishes(channel, 0)
            self.everything_settles()

    @rule(client=clients, channel=busy_channels)
    def slow_client_leaves_and_comes_back(self, client: int, channel: str) -> None:
        """The value that waits belongs to the subscription that has ended."""
        self.client_is_slow_while_values_come(client, channel, 2, 0)
        self.client_leaves_channel(client, channel)
        self.server_publishes(channel, 0)
        self.client_subscribes(client, channel)

    @rule(client=clients, channel=busy_channels)
    def somebody_new_reads(self, client: int, channel: str) -> None:
        """A client event came last, and must not be what the newcomer gets."""
        self.client_sends_a_client_event(client, channel)
        self.newcomer_connects(speaks_msgpack=False)
        self.tell(lambda world: world.subscribe(world.players[-1], channel))

    @rule(client=clients, channel=busy_channels, asleep=st.booleans())
    def value_dies_while_it_waits(self, client: int, channel: str, asleep: bool) -> None:
        """For a client that has stopped reading, and reads again."""
        self.client_is_slow_while_values_come(client, channel, 1, 0)
        if asleep:
            self.machine_sleeps(TTL_S)
        else:
            self.time_passes(TTL_S)
        self.slow_client_reads(client, float("inf"))

    @rule(channel=busy_channels, size=st.sampled_from([0, 0, 50, 2_000]))
    def server_publishes(self, channel: str, size: int) -> None:
        self.tell(lambda world: world.publish((channel,), size))

    @rule(some=st.lists(channels, min_size=2, max_size=3, unique=True), n=st.integers(1, 5))
    def server_publishes_a_burst(self, some: list[str], n: int) -> None:
        for _ in range(n):
            self.tell(lambda world: world.publish(tuple(some), 10))

    @rule(client=clients, channel=channels)
    def client_sends_a_client_event(self, client: int, channel: str) -> None:
        self.tell_of(client, lambda world, player: world.chat(player, channel))

    @rule(client=clients, n_bytes=st.integers(0, 300))
    def client_becomes_slow(self, client: int, n_bytes: int) -> None:
        self.tell_of(client, lambda world, player: world.stop_reading(player, n_bytes))

    @rule(client=clients, n_bytes=st.one_of(st.integers(1, 500), st.just(float("inf"))))
    def slow_client_reads(self, client: int, n_bytes: float) -> None:
        self.tell_of(client, lambda world, player: world.read(player, n_bytes))

    @rule(client=clients, how=st.sampled_from(["close", "drop", "break"]))
    def client_goes(self, client: int, how: str) -> None:
        self.tell_of(client, lambda world, player: world.leave(player, how))

    @rule()
    def fanout_takes_one_turn(self) -> None:
        self.tell(lambda world: world.broker.fanout.deliver_turn())

    @rule()
    def everything_settles(self) -> None:
        self.tell(World.settle)

    @rule(seconds=st.sampled_from([MOMENT_S, 0.5, 3.0, 10.0, TTL_S - MOMENT_S, TTL_S]))
    def time_passes(self, seconds: float) -> None:
        self.tell(lambda world: world.wait(seconds))

    @rule(seconds=st.sampled_from([1.0, TTL_S - MOMENT_S, TTL_S, 1e5]))
    def machine_sleeps(self, seconds: float) -> None:
        self.tell(lambda world: world.sleep(seconds))

    @rule()
    def another_process_takes_over(self) -> None:
        self.tell(World.replace)

    def teardown(self) -> None:
        """Play the story."""

        async def play() -> None:
            async with open_world() as world:
                for step in self.story:
                    result = step(world)
                    if result is not None:
                        await result
                    world.listen()
                await world.finish()

        trio.run(play, clock=MockClock(autojump_threshold=0))


BrokerMachine.TestCase.settings = settings(stateful_step_count=60)
TestBrokerMachine = BrokerMachine.TestCase
