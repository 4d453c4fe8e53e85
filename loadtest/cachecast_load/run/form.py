"""What somebody sets on a page before a run: a few fields of a plan, as texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from cachecast_load.plan.model import Plan, PlanError, make_plan
from cachecast_load.profiles import profile_class

# Fields of Locust's form, and the fields of a plan that they are here.
_FORM = {"user_count": "subscribers", "spawn_rate": "connect_rate", "run_time": "duration_s"}
_WHOLE = ("subscribers", "payload_bytes", "channels")


def filled_in(plan: Plan) -> dict[str, float]:
    """Return what the form says of a plan, by the plan's names."""
    load = plan.load
    return {
        "subscribers": plan.greatest_subscribers,
        "connect_rate": load.connect_rate,
        "duration_s": plan.measured_s,
        "rate": plan.greatest_rate,
        "payload_bytes": load.payload_bytes,
        "channels": load.channels,
    }


def planned(plan: Plan, form: Mapping[str, str], seconds: Callable[[str], float] = float) -> Plan:
    """Return a plan with what a form says of it.

    Args:
        plan: What stands where the form says nothing.
        form: Locust's field names or ours, the locustfile's `lt_...` too, and their texts.
        seconds: Reads how long a run is to last.

    Raises:
        PlanError: It says something that is no number, or that cannot be run.
    """
    before = filled_in(plan)
    given: dict[str, float] = {}
    for field, text in form.items():
        name = _FORM.get(field, field.removeprefix("lt_"))
        if name not in before or not text.strip():
            continue
        try:
            value = float(seconds(text)) if name == "duration_s" else float(text)
        except ValueError:
            raise PlanError(f"{name} wants a number, not {text!r}") from None
        if name in _WHOLE and value != int(value):
            raise PlanError(f"{name} wants a whole number, not {text!r}")
        # What was left as it stood was not given: a knee search has no duration to be set.
        if value != before[name]:
            given[name] = int(value) if name in _WHOLE else value
    return profile_class(plan.profile).fit(make_plan(plan, {}, given)) if given else plan
