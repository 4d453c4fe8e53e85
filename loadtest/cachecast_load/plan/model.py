"""The plan: all of a run but its target, from TOML, flags and the profile's defaults.

    profile = "fanout"
    seed = 7

    [load]
    subscribers = 2000
    channels = 1
    rate = 50            # publishes per second, all channels together
    payload_bytes = 256
    duration_s = 30

    [shape]
    kind = "steps"       # constant, steps, ramp, spike, sine, stages, knee
    of = "rate"          # or "subscribers"
    to = 500
    steps = 5

    [slo]
    rules = ["delivery.p99_ms <= 50", "delivery.lost == 0"]

A plan is immutable and small; the master sends it to its workers as JSON, so each process of a run
derives the same channels, users and schedule from it.
"""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from cachecast_load.measures.names import suggest
from cachecast_load.measures.rules import Slo, parse_slo
from cachecast_load.plan.checks import SHAPED, PlanError, validate

__all__ = [
    "Behaviour",
    "Limits",
    "Load",
    "Plan",
    "PlanError",
    "Shape",
    "from_dict",
    "make_plan",
    "read_toml",
    "validate",
]


@dataclass(frozen=True, slots=True)
class Load:
    """How much, of what, for how long. Rates are per second over the whole run.

    A `duration_s` of 0 is for the profile to work out (`Profile.fit`).
    """

    subscribers: int = 1000
    channels: int = 1
    channels_per_subscriber: int = 1
    distribution: str = "uniform"
    zipf_exponent: float = 1.1
    rate: float = 50.0
    payload_bytes: int = 256
    duration_s: float = 30.0
    connect_rate: float = 1000.0
    arrivals: str = "fixed"
    publish_connections: int = 32


@dataclass(frozen=True, slots=True)
class Shape:
    """How the load changes while it is measured.

    Attributes:
        kind: One of `checks.SHAPES`.
        of: `rate` or `subscribers`, or `both` where stages say both.
        start: The level to begin with; the load's own value when None.
        to: The level to end with, the spike's top, or the knee search's ceiling.
        steps: Number of levels of `steps`, most trials of `knee`.
        period_s: Period of `sine`, length of one trial of `knee`, seconds.
        stages: Stages of `stages`: (seconds, level) pairs, each a straight line to its level; of
            `both` (seconds, rate, subscribers).
    """

    kind: str = "constant"
    of: str = "rate"
    start: float | None = None
    to: float | None = None
    steps: int = 5
    period_s: float = 10.0
    stages: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Behaviour:
    """What subscribers do besides listening; each profile uses the ones it names.

    `ttl_s` is how long the target keeps a cached value; 0 asks the target (`preflight.settle_ttl`).
    `reconnect_to` says where a subscriber comes back of several targets: `next` as behind a
    balancer, `same` as with a name of its own.
    """

    joins_per_s: float = 50.0
    hold_s: float = 1.0
    miss_share: float = 0.0
    churn_per_s: float = 50.0
    disconnect_share: float = 0.5
    drop_share: float = 0.2
    drop_at: float = 0.4
    drops: int = 1
    backoff: str = "as told"
    backoff_max_s: float = 5.0
    reconnect_to: str = "next"
    slow_share: float = 0.1
    slow_bytes_per_s: int = 0
    members_per_channel: int = 50
    connections_per_user: int = 1
    senders_per_channel: int = 1
    ttl_s: float = 0.0
    edge_s: float = 0.5
    channel_kind: str = ""
    mix: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """Ceilings and patience; raising them is a decision, not an accident.

    A run ends early when a rule has been lost for `abort_after_s`; None lets it go on to its end.
    """

    max_rate: float = 20_000.0
    max_connect_rate: float = 5_000.0
    max_subscribers: int = 200_000
    max_deliveries_per_s: float = 2_000_000.0
    max_duration_s: float = 86_400.0
    max_drops: int = 100
    connect_timeout_s: float = 10.0
    publish_timeout_s: float = 10.0
    ready_timeout_s: float = 60.0
    drain_s: float = 30.0
    grace_s: float = 1.0
    abort_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A complete, validated description of a run.

    Attributes:
        assumes_ttl: How long cached values live was neither given nor told.
        is_watched: Whether the ledger is shown what goes on before it ends: somebody looks.
    """

    profile: str
    seed: int = 1
    load: Load = field(default_factory=Load)
    shape: Shape = field(default_factory=Shape)
    behaviour: Behaviour = field(default_factory=Behaviour)
    limits: Limits = field(default_factory=Limits)
    slos: tuple[str, ...] = ()
    strict: bool = False
    conflation: str = "metrics"
    block_size: int = 250
    event_name: str = "lt"
    assumes_ttl: bool = False
    is_watched: bool = False

    @property
    def rules(self) -> list[Slo]:
        """The SLOs, parsed."""
        return [parse_slo(text) for text in self.slos]

    @property
    def greatest_subscribers(self) -> int:
        """The most subscribers any moment of the run can ask for."""
        # Stages that were stretched to a number are that number, and not a rounding error more.
        return math.ceil(round(self._greatest("subscribers", self.load.subscribers), 6))

    @property
    def greatest_rate(self) -> float:
        """The highest publish rate any moment of the run can ask for."""
        return self._greatest("rate", self.load.rate)

    def _greatest(self, of: str, base: float) -> float:
        shape = self.shape
        if shape.kind == "constant" or shape.of not in (of, "both"):
            return base
        column = SHAPED.index(of) + 1 if shape.of == "both" else 1
        # A stage that is too short is refused by `validate`, which asks this before.
        stages = [stage[column] for stage in shape.stages if len(stage) > column]
        return max(base, shape.start or 0.0, shape.to or 0.0, *stages)

    @property
    def measured_s(self) -> float:
        """How long the run measures at most."""
        shape = self.shape
        if shape.kind == "stages":
            return sum(stage[0] for stage in shape.stages)
        if shape.kind == "knee":
            # A trial that does not settle is given `ready_timeout_s` before it is judged.
            return shape.steps * (shape.period_s + self.limits.ready_timeout_s)
        return self.load.duration_s

    @property
    def blocks(self) -> int:
        """How many blocks (Locust users that drive sockets) the run needs."""
        return max(1, -(-self.greatest_subscribers // self.block_size))

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain data for JSON; `from_dict` reads it back."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain


_SECTIONS: dict[str, type[Any]] = {
    "load": Load,
    "shape": Shape,
    "behaviour": Behaviour,
    "limits": Limits,
}
_PLAN = frozenset(entry.name for entry in dataclasses.fields(Plan))
# A file says whom the plan is for as well, and has its rules in a table.
_DOCUMENT = _PLAN - {"slos", "is_watched"} | {"slo", "target"}
# msgspec's names of types, in words for people who write TOML.
_WANTED = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
}


def from_dict(data: Mapping[str, Any]) -> Plan:
    """Rebuild a plan from `Plan.to_dict`.

    Raises:
        PlanError: Another version made it.
    """
    return _build(data, _PLAN)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a plan file.

    Raises:
        PlanError: It cannot be read or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # also of numbers of thousands of digits
        raise PlanError(f"{path} is not TOML: {error}") from error
    except RecursionError:
        raise PlanError(f"{path} is nested too deeply") from None


def make_plan(
    defaults: Plan, document: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> Plan:
    """Lay a TOML document and then flags over a profile's defaults, and validate the result.

    Args:
        defaults: The profile's plan.
        document: Parsed TOML.
        overrides: Field name -> value from flags; None means not given.

    Raises:
        PlanError: An unknown field, a wrong type, or a value that cannot be run.
    """
    _check_names(document, _DOCUMENT)
    tree = defaults.to_dict()
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    shape = tree["shape"] | document.get("shape", {})
    scales = _taken_out(given, shape)
    for name, kind in _SECTIONS.items():
        known = kind.__dataclass_fields__
        tree[name] |= document.get(name, {})
        tree[name] |= {key: value for key, value in given.items() if key in known}
    mix = tree["behaviour"]["mix"]
    if isinstance(mix, Mapping):
        tree["behaviour"]["mix"] = list(mix.items())
    top = {"slos": document.get("slo", {}).get("rules", tree["slos"]), **document, **given}
    tree |= {key: top[key] for key in _PLAN - set(_SECTIONS) - {"profile"} if key in top}
    plan = _build(tree, _PLAN)
    if scales:
        validate(plan)
        plan = _scale(plan, scales)
    validate(plan)
    return plan


def _taken_out(given: dict[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the flags that scale a shape's stages, and take them out.

    Raises:
        PlanError: A duration for a search that ends when it has found something.
    """
    kind = shape.get("kind")
    if kind == "knee" and "duration_s" in given:
        raise PlanError(
            "a knee search has no duration: it ends when it has found the level, after"
            " shape.steps trials of shape.period_s seconds at most"
        )
    if kind != "stages":
        return {}
    names = ("duration_s", *SHAPED) if shape.get("of") == "both" else ("duration_s",)
    return {name: given.pop(name) for name in names if name in given}


def _scale(plan: Plan, to: Mapping[str, Any]) -> Plan:
    """Stretch stages to another duration, and those of both to other peaks."""
    if any(value <= 0 for value in to.values()):
        raise PlanError(f"{', '.join(to)} must be above 0")
    peaks = plan.measured_s, plan.greatest_rate, plan.greatest_subscribers
    factors = [
        to[name] / peak if name in to and peak else 1.0
        for name, peak in zip(("duration_s", *SHAPED), peaks, strict=True)
    ]
    stages = tuple(
        tuple(value * factor for value, factor in zip(stage, factors, strict=False))
        for stage in plan.shape.stages
    )
    load = dataclasses.replace(
        plan.load,
        rate=plan.load.rate * factors[1],
        subscribers=max(1, round(plan.load.subscribers * factors[2])),
    )
    return dataclasses.replace(
        plan, load=load, shape=dataclasses.replace(plan.shape, stages=stages)
    )


def _build(tree: Mapping[str, Any], known: AbstractSet[str]) -> Plan:
    _check_names(tree, known)
    try:
        return msgspec.convert(tree, Plan)
    except msgspec.ValidationError as error:
        raise PlanError(_explain(str(error), tree)) from None


def _check_names(tree: Mapping[str, Any], known: AbstractSet[str]) -> None:
    """Refuse what has no meaning: it would be ignored without a word."""
    _refuse_unknown(tree, known, "the plan")
    tables = {name: set(kind.__dataclass_fields__) for name, kind in _SECTIONS.items()}
    for name, fields in {**tables, "slo": {"rules"}}.items():
        table = tree.get(name, {})
        if not isinstance(table, Mapping):
            rest = " with rules = ['NAME <= NUMBER', ...]" if name == "slo" else ""
            raise PlanError(f"[{name}] must be a table{rest}")
        _refuse_unknown(table, fields, f"[{name}]")


def _refuse_unknown(table: Mapping[str, Any], known: AbstractSet[str], where: str) -> None:
    for key in table:
        if key not in known:
            hint = suggest(str(key), sorted(known), most=1)
            raise PlanError(f"{where} has no field {key!r}; {hint}")


def _explain(text: str, tree: Mapping[str, Any]) -> str:
    """Turn msgspec's ``Expected `float`, got `str` - at `$.load.rate` `` into a sentence."""
    rule, _, where = text.partition(" - at ")
    path, is_inside, _ = where.strip("`").removeprefix("$.").partition("[")
    value: Any = tree
    for name in path.split("."):
        value = value[name]
    if path == "slos":
        return f"[slo] wants rules = ['NAME <= NUMBER', ...], not {value!r}"
    if is_inside:
        return f"{path} wants a list of pairs, not {value!r}"
    found = re.match(r"Expected `(\w+)", rule)
    if found is None:
        return f"{path}: {rule[0].lower()}{rule[1:]}"
    wanted = _WANTED.get(found[1], found[1])
    return f"{path} wants {wanted}, not {value!r}"
