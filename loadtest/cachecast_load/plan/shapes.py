"""How the load changes with time: pure functions from seconds to a level."""

from __future__ import annotations

import math
from typing import NamedTuple

from cachecast_load.plan.model import Plan

SPIKE_BEGINS, SPIKE_ENDS = 0.4, 0.6


class Level(NamedTuple):
    """Load of one moment: publishes per second, and subscribers that shall be connected."""

    rate: float
    subscribers: int


class TimedShape:
    """A shape that is known beforehand: constant, steps, ramp, spike, sine or stages."""

    def __init__(self, plan: Plan) -> None:
        self.shape = plan.shape
        self._load = plan.load
        base = plan.load.rate if plan.shape.of == "rate" else float(plan.load.subscribers)
        self.base = base
        self.start = base if plan.shape.start is None else plan.shape.start
        self.to = base if plan.shape.to is None else plan.shape.to
        self.duration_s = plan.measured_s

    def level(self, value: float) -> Level:
        """Return the load where what the shape is of has a value, and the rest is the plan's."""
        if self.shape.of == "subscribers":
            return Level(self._load.rate, round(value))
        return Level(value, self._load.subscribers)

    def load_at(self, second: float) -> Level | None:
        """Return the load of a moment since measuring began, None once the shape is over."""
        if second >= self.duration_s:
            return None
        if self.shape.of == "both":
            rate = self._stage(second, self._load.rate, 1)
            return Level(rate, round(self._stage(second, self._load.subscribers, 2)))
        return self.level(self._value_at(second))

    def _value_at(self, second: float) -> float:
        part = second / self.duration_s
        match self.shape.kind:
            case "steps":
                step = min(int(part * self.shape.steps), self.shape.steps - 1)
                span = max(self.shape.steps - 1, 1)
                return self.start + (self.to - self.start) * step / span
            case "ramp":
                return self.start + (self.to - self.start) * part
            case "spike":
                return self.to if SPIKE_BEGINS <= part < SPIKE_ENDS else self.start
            case "sine":
                angle = 2 * math.pi * second / self.shape.period_s
                return self.start + (self.to - self.start) * (1 - math.cos(angle)) / 2
            case "stages":
                return self._stage(second, self.start, 1)
            case _:
                return self.base

    def _stage(self, second: float, level: float, column: int) -> float:
        """Return where one column of the stages is: on a straight line to its next level."""
        for stage in self.shape.stages:
            if second < stage[0]:
                return level + (stage[column] - level) * second / stage[0]
            second -= stage[0]
            level = stage[column]
        return level
