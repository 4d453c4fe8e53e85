"""What makes a plan impossible, or an attack by a typing error; each fault in one sentence."""

from __future__ import annotations

import sys
from dataclasses import fields
from typing import TYPE_CHECKING

from cachecast_load.measures.figures import FIGURES
from cachecast_load.measures.rules import SloError
from cachecast_load.pusher import stamp

if TYPE_CHECKING:
    from cachecast_load.plan.model import Behaviour, Plan

SHAPES = ("constant", "steps", "ramp", "spike", "sine", "stages", "knee")
# What a shape can be of; one of both has them in this order.
SHAPED = ("rate", "subscribers")
DISTRIBUTIONS = ("uniform", "zipf")
CONFLATION = ("metrics", "allowed", "never")
RECONNECTS = ("next", "same")
# A plan travels to its workers, and the numbers of their messages have 64 bits.
MAX_SEED = 2**63 - 1
BACKOFFS = ("as told", "at once", "jitter")


class PlanError(ValueError):
    """A plan that cannot be run; the text names the field, the rule and what would do."""


def validate(plan: Plan) -> None:
    """Refuse what cannot be run.

    Raises:
        PlanError: The first fault found, named with its field and what would do.
    """
    for name in ("load", "shape", "behaviour", "limits"):
        section = getattr(plan, name)
        for entry in fields(section):
            for value in _numbers(getattr(section, entry.name)):
                # A whole number of TOML has no end, and what cannot be a float cannot be compared.
                is_finite = abs(value) <= sys.float_info.max
                _require(is_finite, f"{name}.{entry.name} must be a finite number")
                _require(value >= 0, f"{name}.{entry.name} must not be negative (it is {value:g})")
    _check_load(plan)
    _check_shape(plan)
    _check_behaviour(plan.behaviour)
    _check_ceilings(plan)
    _check_rules(plan)


def _numbers(value: object) -> list[float]:
    """Return the numbers in a field: itself, or those of its pairs."""
    if isinstance(value, tuple):
        return [number for entry in value for number in _numbers(entry)]
    return [value] if isinstance(value, float | int) else []


def _require(holds: bool, text: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise PlanError(text)


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    _require(value in known, f"{name} = {value!r} is not one of {', '.join(known)}")


def _check_load(plan: Plan) -> None:
    load = plan.load
    _one_of("load.distribution", load.distribution, DISTRIBUTIONS)
    _one_of("load.arrivals", load.arrivals, ("fixed", "poisson"))
    _one_of("conflation", plan.conflation, CONFLATION)
    _require(load.subscribers >= 1, "load.subscribers must be at least 1")
    _require(load.channels >= 1, "load.channels must be at least 1")
    _require(
        load.channels < stamp.MAX_CHANNELS,
        f"load.channels must stay below {stamp.MAX_CHANNELS}",
    )
    _require(load.connect_rate > 0, "load.connect_rate must be above 0")
    _require(
        stamp.MIN_SIZE <= load.payload_bytes <= stamp.MAX_SIZE,
        f"load.payload_bytes must be between {stamp.MIN_SIZE} (the stamp that proves delivery)"
        f" and {stamp.MAX_SIZE}, it is {load.payload_bytes}",
    )
    _require(
        1 <= load.channels_per_subscriber <= load.channels,
        f"load.channels_per_subscriber must be between 1 and load.channels ({load.channels})",
    )
    _require(
        1 <= load.publish_connections <= stamp.MAX_BEHIND,
        f"load.publish_connections must be between 1 and {stamp.MAX_BEHIND}",
    )
    _require(plan.block_size >= 1, "block_size must be at least 1")
    _require(-MAX_SEED <= plan.seed <= MAX_SEED, f"seed must be between {-MAX_SEED} and {MAX_SEED}")
    _require(plan.event_name.isascii() and bool(plan.event_name), "event_name must be plain text")


def _check_shape(plan: Plan) -> None:
    shape = plan.shape
    _one_of("shape.kind", shape.kind, SHAPES)
    _one_of("shape.of", shape.of, (*SHAPED, "both"))
    _require(shape.steps >= 1, "shape.steps must be at least 1")
    _require(shape.period_s > 0, "shape.period_s must be above 0")
    if shape.kind in ("steps", "ramp", "spike", "sine", "knee"):
        _require(shape.to is not None, f"a {shape.kind} shape needs shape.to, the level to reach")
        _require((shape.to or 0) > 0, "shape.to must be above 0")
    if shape.kind == "stages":
        levels = SHAPED if shape.of == "both" else (shape.of,)
        form = f"[[seconds, {', '.join(levels)}], ...]"
        _require(bool(shape.stages), f"a stages shape needs stages = {form}")
        _require(
            all(len(stage) == len(levels) + 1 for stage in shape.stages),
            f"stages of {shape.of} are {form}",
        )
        _require(all(stage[0] > 0 for stage in shape.stages), "stages: seconds must be above 0")
    else:
        _require(shape.of != "both", "only a stages shape is of both, rate and subscribers")
    if shape.kind == "knee":
        _require(bool(plan.slos), "a knee search needs [slo] rules: they say what still counts")
        _require(
            plan.limits.abort_after_s is None,
            "a knee search goes where rules are lost: leave --abort-on-fail (limits.abort_after_s)"
            " out",
        )
        _require(shape.period_s >= 1, "a knee's trials (shape.period_s) must last 1 s or more")


def _check_behaviour(behaviour: Behaviour) -> None:
    _one_of("behaviour.backoff", behaviour.backoff, BACKOFFS)
    _one_of("behaviour.reconnect_to", behaviour.reconnect_to, RECONNECTS)
    for name in ("miss_share", "disconnect_share", "drop_share", "drop_at", "slow_share"):
        value = getattr(behaviour, name)
        _require(value <= 1, f"behaviour.{name} is a share between 0 and 1, not {value:g}")
    _require(behaviour.connections_per_user >= 1, "behaviour.connections_per_user is at least 1")
    _require(behaviour.members_per_channel >= 1, "behaviour.members_per_channel is at least 1")
    kinds = ("private-", "private-encrypted-", "presence-")
    known = (*kinds, "cache-", *(f"{kind}cache-" for kind in kinds))
    if behaviour.channel_kind:
        _one_of("behaviour.channel_kind", behaviour.channel_kind, known)


def _check_rules(plan: Plan) -> None:
    try:
        rules = plan.rules
    except SloError as error:
        raise PlanError(f"[slo] {error}") from error
    for rule in rules:
        needs_s = FIGURES[rule.figure].needs_s
        # 0 is not known yet: the profile works it out (`Profile.fit`), and the plan comes again.
        _require(
            not plan.measured_s or plan.measured_s >= needs_s,
            f"[slo] {rule} needs a run that measures for {needs_s:g} s or more, this one does for"
            f" {plan.measured_s:g} s",
        )


def _check_ceilings(plan: Plan) -> None:
    limits = plan.limits
    for name in ("connect_timeout_s", "publish_timeout_s"):
        # With 0 the target would be blamed for being slower than possible.
        _require(getattr(limits, name) > 0, f"limits.{name} must be above 0")
    for what, value, name in (
        ("publishes per second", plan.greatest_rate, "max_rate"),
        ("joins per second", plan.behaviour.joins_per_s, "max_connect_rate"),
        ("reconnects and changes per second", plan.behaviour.churn_per_s, "max_connect_rate"),
        ("drops", float(plan.behaviour.drops), "max_drops"),
        ("connects per second", plan.load.connect_rate, "max_connect_rate"),
        ("subscribers", plan.greatest_subscribers, "max_subscribers"),
        ("seconds", plan.measured_s, "max_duration_s"),
        (
            "seconds of connecting (subscribers / connect_rate)",
            plan.greatest_subscribers / plan.load.connect_rate,
            "max_duration_s",
        ),
    ):
        ceiling = getattr(limits, name)
        _require(
            value <= ceiling,
            f"{value:g} {what} is above the ceiling of {ceiling:g}; if that is meant, raise"
            f" {name} under [limits]",
        )
    per_channel = plan.greatest_subscribers * plan.load.channels_per_subscriber / plan.load.channels
    deliveries = plan.greatest_rate * per_channel
    _require(
        deliveries <= limits.max_deliveries_per_s,
        f"the plan asks for {deliveries:,.0f} deliveries per second, above the ceiling of"
        f" {limits.max_deliveries_per_s:,.0f}; if that is meant, raise max_deliveries_per_s",
    )
