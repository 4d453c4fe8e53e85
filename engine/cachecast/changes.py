"""What is different between two configurations of a node, in sentences, and what may change.

For those who change it while it runs, so nothing secret is in a sentence: of credentials, of
webhooks (a URL can carry a token) and of the bus it says no more than that they change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

import msgspec

from cachecast.config import BrokerConfig, FileConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachecast.apps import App

__all__ = ["Changes", "compare", "reloadable"]

#: Fields of ``[server]`` that a node has acted on when it started, once and for all.
FIXED_SERVER: Final = (
    "host", "port", "uds", "is_uds_only", "admin_host", "admin_port", "has_admin", "control",
    "proxy_protocol", "locks_memory", "sends_traces", "workers", "log_format", "inspector",
    "inspector_token", "inspector_hosts", "inspector_shows_payloads",
)  # fmt: skip

#: Fields whose values are not shown.
_HIDDEN: Final = frozenset({"webhooks", "inspector_token"})

#: Fields that :func:`_credentials` or a caller speaks of.
_SPOKEN_OF: Final = frozenset({"key", "secret", "keys", "apps", "server", "bus"})

C = TypeVar("C", bound=BrokerConfig)


class Changes(msgspec.Struct, frozen=True):
    """What another configuration changes.

    Attributes:
        made: sentences about what changes while the node runs.
        fixed: sentences about what does not, before the node is started again.
    """

    made: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()


def reloadable(old: C, new: C) -> C:
    """``new``, with what cannot change while a node runs as it is in ``old``."""
    if not (isinstance(old, FileConfig) and isinstance(new, FileConfig)):
        return msgspec.structs.replace(new, bus=old.bus)
    kept = {field: getattr(old.server, field) for field in FIXED_SERVER}
    if bool(old.server.tls_cert) != bool(new.server.tls_cert):
        kept |= {"tls_cert": old.server.tls_cert, "tls_key": old.server.tls_key}
    server = msgspec.structs.replace(new.server, **kept)
    return msgspec.structs.replace(new, bus=old.bus, server=server)


def compare(old: BrokerConfig, new: BrokerConfig) -> Changes:
    """What changes if ``new`` takes the place of ``old`` in a node that runs. O(apps)."""
    kept = reloadable(old, new)
    made = list(_differences("", old, kept))
    fixed: list[str] = []
    if isinstance(kept, FileConfig) and isinstance(old, FileConfig):
        assert isinstance(new, FileConfig)
        made += _differences("server.", old.server, kept.server)
        fixed += _differences("server.", kept.server, new.server)
    fixed += [
        f"bus.{field}: changed"
        for field in old.bus.__struct_fields__
        if getattr(old.bus, field) != getattr(new.bus, field)
    ]
    return Changes((*made, *_app_differences(old, kept)), tuple(fixed))


def _differences(prefix: str, old: msgspec.Struct, new: msgspec.Struct) -> Iterator[str]:
    for field in old.__struct_fields__:
        before, after = getattr(old, field), getattr(new, field)
        if field in _SPOKEN_OF or before == after:
            continue
        if field in _HIDDEN:
            yield f"{prefix}{field}: changed"
        else:
            yield f"{prefix}{field}: {_text(before)} -> {_text(after)}"


def _text(value: object) -> str:
    return "none" if value is None else msgspec.json.encode(value).decode()


def _app_differences(old: BrokerConfig, new: BrokerConfig) -> Iterator[str]:
    before = {app.id: app for app in old.apps}
    after = {app.id: app for app in new.apps}
    for app_id, app in after.items():
        if app_id not in before:
            yield f"app {app_id}: added"
            continue
        was = before[app_id]
        if was is app:
            continue
        yield from (f"app {app_id}: {text}" for text in _credentials(was, app))
        yield from _differences(f"app {app_id}: ", was, app)
        if was.is_enabled and not app.is_enabled:
            yield f"app {app_id}: its clients are closed with 4003"
    for app_id in before:
        if app_id not in after:
            yield f"app {app_id}: removed, its clients are closed with 4001"


def _credentials(old: App, new: App) -> Iterator[str]:
    before = {pair.key: pair.secret for pair in old.key_pairs}
    after = {pair.key: pair.secret for pair in new.key_pairs}
    yield from (f"key {key} added" for key in after if key not in before)
    yield from (f"key {key} removed" for key in before if key not in after)
    both = [key for key in before if key in after]
    yield from (f"secret of key {key} changed" for key in both if before[key] != after[key])
    if both != [key for key in after if key in before]:
        yield "order of keys changed"
