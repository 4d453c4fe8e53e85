"""One process's part of a run: it hands out seats and builds what sits on them.

A *seat* is what one Locust user drives: one block of subscribers, or one publisher. The master
hands the numbers out, so that any number of workers make exactly one whole run together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cachecast_load.crowd.block import Block
from cachecast_load.crowd.profile import Profile
from cachecast_load.crowd.publisher import Publisher
from cachecast_load.crowd.session import Session
from cachecast_load.measures.recorder import Recorder
from cachecast_load.net.reactor import Reactor, now_us
from cachecast_load.plan.model import Plan, from_dict
from cachecast_load.plan.orders import OrderBook
from cachecast_load.plan.target import Target, parse_endpoint, resolve
from cachecast_load.profiles import profile_class
from cachecast_load.run.health import HealthSampler

BLOCK, PUBLISHER = "block", "publisher"


class SeatPlan:
    """The master's list of free seats.

    Args:
        blocks: how many blocks the run has.
        publishers: how many publishers.
    """

    def __init__(self, blocks: int, publishers: int) -> None:
        self.blocks = blocks
        self.publishers = publishers
        self._free = {
            BLOCK: list(range(blocks - 1, -1, -1)),
            PUBLISHER: list(range(publishers - 1, -1, -1)),
        }

    @property
    def seats(self) -> int:
        """All seats of the run."""
        return self.blocks + self.publishers

    def take(self, kind: str) -> int:
        """Return a free seat's number, -1 when all are taken."""
        free = self._free[kind]
        return free.pop() if free else -1


def publishers_for(plan: Plan, processes: int) -> int:
    """Return how many publishers a run needs: one per process, never more than channels."""
    return max(1, min(processes, plan.load.channels))


def open_session(plan: Plan, target: Target, run: int) -> Session:
    """Resolve the target and make what the blocks of this process share.

    Raises:
        TargetError: a host does not resolve, or TLS cannot be set up.
    """
    auth = parse_endpoint(target.auth_endpoint, is_resource=True) if target.auth_endpoint else None
    return Session(
        plan=plan,
        target=target,
        run=run,
        sockets=tuple(resolve(socket, target) for socket in target.sockets),
        apis=tuple(resolve(api, target) for api in target.apis),
        auth=resolve(auth, target) if auth else None,
        recorder=Recorder(len(target.sockets), len(target.apis)),
        orders=OrderBook(),
    )


class Station:
    """Builds the seats of one process.

    Args:
        session: what they share.
        publishers: how many publishers the whole run has.
    """

    def __init__(self, session: Session, publishers: int) -> None:
        self.session = session
        self.publishers = publishers
        self.sampler = HealthSampler()
        self._sampled_us = now_us()

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any], target: Target) -> Station:
        """Build a worker's station of what its master's `to_wire` gave.

        Raises:
            PlanError: The master's plan is another version's.
            TargetError: This worker aims at something else, or its target cannot be resolved.
        """
        target.require_same(wire["sockets"], wire["apis"])
        session = open_session(from_dict(wire["plan"]), target, wire["run"])
        return cls(session, wire["publishers"])

    def to_wire(self) -> dict[str, Any]:
        """Return as plain data what workers need to take part in this run."""
        session = self.session
        return {
            "plan": session.plan.to_dict(),
            "run": session.run,
            "publishers": self.publishers,
            "sockets": session.target.socket_urls,
            "apis": session.target.api_urls,
        }

    def make_profile(self) -> Profile:
        """Return a new instance of the plan's profile."""
        return profile_class(self.session.plan.profile)(self.session.plan, self.session)

    def sit(self, kind: str, number: int, reactor: Reactor) -> Block | Publisher:
        """Build what sits on a seat."""
        profile = self.make_profile()
        if kind == BLOCK:
            return Block(self.session, profile, reactor, number)
        return Publisher(self.session, profile, reactor, number, self.publishers)

    def report(self) -> dict[str, Any]:
        """Return what was measured since the last report, once a second with the health."""
        report = self.session.recorder.take()
        now = now_us()
        if now - self._sampled_us >= 1_000_000:
            self._sampled_us = now
            report["health"] = self.sampler.sample()
        return report
