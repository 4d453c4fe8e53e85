"""How the load changes with time: pure functions from seconds to a level."""

from __future__ import annotations

import math

from cachecast_load.plan.model import Plan

SPIKE_BEGINS, SPIKE_ENDS = 0.4, 0.6


class TimedShape:
    """A shape that is known beforehand: constant, steps, ramp, spike, sine or stages."""

    def __init__(self, plan: Plan) -> None:
        self.shape = plan.shape
        base = plan.load.rate if plan.shape.of == "rate" else float(plan.load.subscribers)
        self.base = base
        self.start = base if plan.shape.start is None else plan.shape.start
        self.to = base if plan.shape.to is None else plan.shape.to
        self.duration_s = plan.measured_s

    def level_at(self, second: float) -> float | None:
        """Return the level at a moment since measuring began, None once the shape is over."""
        if second >= self.duration_s:
            return None
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
                return self._stage(second)
            case _:
                return self.base

    def _stage(self, second: float) -> float:
        level = self.start
        for seconds, target in self.shape.stages:
            if second < seconds:
                return level + (target - level) * second / seconds
            second -= seconds
            level = target
        return level
