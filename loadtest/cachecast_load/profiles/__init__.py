"""The profiles, by the names the command line uses.

Each is a small class in a file of its own; `crowd.profile` says what the hooks are. To add one,
write the class and enter it here.
"""

from __future__ import annotations

import dataclasses

from cachecast_load.crowd.profile import Profile
from cachecast_load.measures.names import suggest
from cachecast_load.plan.model import Plan, PlanError
from cachecast_load.profiles.cache_expiry import CacheExpiry
from cachecast_load.profiles.cache_join import CacheJoin
from cachecast_load.profiles.churn import Churn
from cachecast_load.profiles.client_events import ClientEvents
from cachecast_load.profiles.encrypted import Encrypted
from cachecast_load.profiles.fanout import Fanout
from cachecast_load.profiles.many_channels import ManyChannels
from cachecast_load.profiles.mixed import Mixed
from cachecast_load.profiles.presence import Presence
from cachecast_load.profiles.private import Private
from cachecast_load.profiles.reconnect_storm import ReconnectStorm
from cachecast_load.profiles.slow_readers import SlowReaders
from cachecast_load.profiles.soak import Soak

PROFILES: dict[str, type[Profile]] = {
    profile.name: profile
    for profile in (
        Fanout,
        ManyChannels,
        CacheJoin,
        CacheExpiry,
        Presence,
        ClientEvents,
        Private,
        Encrypted,
        Churn,
        ReconnectStorm,
        SlowReaders,
        Soak,
        Mixed,
    )
}


def profile_class(name: str) -> type[Profile]:
    """Return a profile by name.

    Raises:
        PlanError: there is none; the text names near ones.
    """
    found = PROFILES.get(name)
    if found is None:
        hint = suggest(name, PROFILES, "there are")
        raise PlanError(f"no profile is called {name!r}; {hint}")
    return found


def explain(plan: Plan) -> list[str]:
    """Return sentences on what a run will do that its plan does not say, or says in vain."""
    profile, load, default = profile_class(plan.profile), plan.load, default_plan(plan.profile).load
    notes = profile.explain(plan)
    if plan.shape.kind in ("stages", "knee") and load.duration_s != default.duration_s:
        notes.append(
            f"a {plan.shape.kind} shape has a length of its own: load.duration_s is not it"
        )
    return notes + [
        f"{profile.name} does not use load.{name}: {why}"
        for name, why in profile.unused.items()
        if getattr(load, name) != getattr(default, name)
    ]


def default_plan(name: str) -> Plan:
    """Return the plan a profile runs when nothing else is said.

    Raises:
        PlanError: there is no such profile.
    """
    profile = profile_class(name)
    plan = Plan(profile=name, slos=profile.slos)
    sections = {
        section: dataclasses.replace(getattr(plan, section), **values)
        for section, values in profile.defaults.items()
    }
    return dataclasses.replace(plan, **sections)
