"""The configuration of a node: what a file, the environment and flags may say.

``BrokerConfig`` is what an embedder gives to ``open_broker``; ``FileConfig`` adds where to listen,
for ``cachecast serve``. Precedence: flags beat the environment, which beats the file.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from cachecast.apps import (
    MAX_CACHE_TTL_S,
    WEBHOOK_EVENTS,
    App,
    KeyPair,
    Webhook,
    check_positive,
    check_visible,
    require_room,
)
from cachecast.bus_config import BusConfig
from cachecast.errors import ConfigError
from cachecast.files import read_file

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "DEMO_APP",
    "ENVIRONMENT",
    "App",
    "BrokerConfig",
    "BusConfig",
    "FileConfig",
    "KeyPair",
    "ServerConfig",
    "Webhook",
    "load_config",
]

#: The app that is served when nothing is configured, on loopback only.
DEMO_APP = App(
    id="4242",
    key="app-key",
    secret="app-secret",  # noqa: S106 - public on purpose, which is why it stays on loopback
    name="demonstration",
    allows_client_events=True,
    sends_subscription_counts=True,
)

#: Close codes that clients may be told when the node ends; the first is the default.
DRAIN_CODES: Final = (4100, 4200)

#: More than the cores of any machine.
MAX_WORKERS: Final = 1_024

#: What may be the inspector's token: it has to fit a header, and no guess.
TOKEN: Final = re.compile(r"[!-~]{16,200}")


class BrokerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a Broker needs to know; limits that hold for the node as a whole.

    Attributes:
        cluster: the region this node is in; apps of another one are refused with 4001.
        cache_ttl_s: lifetime of cached values in seconds, at most 1800.
        max_cache_entries, max_cache_bytes: ceilings of the cached values of all apps together, in
            number and in bytes; past one the app that holds most loses its oldest value.
        requires_protocol: refuse a client that names no protocol version with 4008, as hosted
            Pusher announces for some day (protocol.md 1.2); load scripts often name none.
        max_connections: clients of all apps together; past it 4100. None: as many as files may be
            open.
        activity_timeout_s: told to clients; a silent one is pinged after it.
        pong_timeout_s: seconds that a pinged client may take before 4201.
        max_inactivity_s: 4202 for clients that answer no pings of either kind (protocol.md 1.5).
        max_message_bytes: bytes of one message from a client; past it the close code is 1009.
        max_head_bytes, max_headers: bytes and headers of one HTTP request head; past them 431.
        max_body_bytes: bytes of the body of one HTTP request; past it 413.
        max_undelivered_bytes: publications that wait on one channel; past it publishers wait.
        max_outbox_bytes: that wait for slow connections of all apps, 200 for each frame included;
            past it whoever has taken nothing for the longest is closed with 4100.
        request_timeout_s: TLS handshake and one complete request, together; past it 408.
        idle_timeout_s: seconds that an HTTP connection may be silent between requests.
        close_timeout_s: seconds that a closing client may take to read the close frame.
        bus: how the node reaches the engine that joins it to others; without URLs it is alone.
    """

    apps: Sequence[App] = ()
    cluster: str | None = None
    cache_ttl_s: float = MAX_CACHE_TTL_S
    max_cache_entries: int = 2_000_000
    max_cache_bytes: int = 1024 * 1024 * 1024

    requires_protocol: bool = False
    max_connections: int | None = None
    activity_timeout_s: float = 45.0
    pong_timeout_s: float = 30.0
    max_inactivity_s: float = 86_400.0
    max_message_bytes: int = 64 * 1024
    max_head_bytes: int = 16 * 1024
    max_headers: int = 100
    max_body_bytes: int = 2 * 1024 * 1024
    max_undelivered_bytes: int = 1024 * 1024
    max_outbox_bytes: int = 256 * 1024 * 1024
    request_timeout_s: float = 10.0
    idle_timeout_s: float = 75.0
    close_timeout_s: float = 5.0
    bus: BusConfig = BusConfig()

    def check(self) -> None:
        """Check what types cannot say.

        Raises:
            ConfigError: names field, rule and remedy.
        """
        if not 0 < self.cache_ttl_s <= MAX_CACHE_TTL_S:
            raise ConfigError(
                "cache_ttl_s",
                f"must be greater than 0 and at most {MAX_CACHE_TTL_S:.0f} seconds, "
                f"is {self.cache_ttl_s:g}: that no cached value outlives 30 minutes is what "
                "cache channels promise.",
                "Lower it or leave it out.",
            )
        if not 1 <= self.activity_timeout_s < inf:
            # pusher-js takes 0 for "no activity timeout" and stays in "connecting" for ever.
            raise ConfigError("activity_timeout_s", "must be at least 1 second and finite.")
        for field in _POSITIVE:
            value = getattr(self, field)
            check_positive(field, value)
        if self.cluster == "":
            raise ConfigError("cluster", "must be the name of a region.", "Or leave it out.")
        check_visible("cluster", "it", self.cluster or "")
        self.bus.check()
        self._check_apps()

    def _check_apps(self) -> None:
        if not self.apps:
            raise ConfigError(
                "apps", "at least one app is needed.", "`cachecast generate app` makes one."
            )
        ids: set[str] = set()
        keys: set[str] = set()
        for number, app in enumerate(self.apps):
            where = f"apps[{number}]"
            app.check(where)
            self._check_room(app, where)
            if app.id in ids:
                raise ConfigError(f"{where}.id", f"{app.id!r} is used by another app.")
            ids.add(app.id)
            for pair in app.key_pairs:
                if pair.key in keys:
                    raise ConfigError(f"{where}.key", f"{pair.key!r} is used twice.")
                keys.add(pair.key)

    def _check_room(self, app: App, where: str) -> None:
        """Check that what the app allows passes the limits of the node."""
        pairs = [
            ("max_body_bytes", "max_event_bytes"),
            ("max_cache_bytes", "max_event_bytes"),
            ("max_outbox_bytes", "max_pending_bytes"),
            ("max_message_bytes", "max_presence_member_bytes"),
            ("max_message_bytes", "max_user_id_length"),
        ]
        if app.allows_client_events:
            pairs.append(("max_message_bytes", "max_event_bytes"))
        for field, one in pairs:
            require_room(field, getattr(self, field), f"{where}.{one}", getattr(app, one))


_POSITIVE = (
    "max_cache_entries",
    "max_cache_bytes",
    "max_connections",
    "pong_timeout_s",
    "max_inactivity_s",
    "max_message_bytes",
    "max_head_bytes",
    "max_headers",
    "max_body_bytes",
    "max_undelivered_bytes",
    "max_outbox_bytes",
    "request_timeout_s",
    "idle_timeout_s",
    "close_timeout_s",
)


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where and how ``cachecast serve`` listens.

    Attributes:
        host, port: address for clients, WebSocket and HTTP API alike; port 0 lets the system
            choose.
        uds: path of a Unix socket for clients, beside that address; its group may connect.
        is_uds_only: whether it takes the place of the address.
        tls_cert, tls_key: paths of PEM files; both or neither. Read again on SIGHUP.
        control: path of the Unix socket by which commands on this machine speak to the node
            (``cachecast reload``); without one it follows from ``port``, and ``off`` is none.
        has_admin: whether there is an admin address with ``/up``, ``/ready`` and ``/metrics``.
        admin_host, admin_port: the admin address; no port means the one after ``port``, or any if
            it is taken.
        trusts_proxy: whether to believe a proxy's ``X-Forwarded-Proto`` or ``Forwarded``, for
            apps that accept TLS only.
        proxy_protocol: whether each connection of a client begins with a PROXY header, version 1 or
            2, which balancers send; one without is closed.
        locks_memory: whether to keep the process out of swap (``mlockall``).
        sends_traces: whether to send OpenTelemetry traces of HTTP publishes and webhooks.
        drain_s: seconds within which clients are closed after SIGTERM, at an even rate.
        drain_code: close code that they are told: 4100 brings them back after a second or more,
            4200 at once.
        webhook_flush_s: seconds after that within which webhooks that wait have one more try each.
        exit_limit_s: seconds after SIGTERM by which the process has ended, whatever still waits.
        inspector: whether people may look into the node at the admin address, with a token.
        inspector_token: the secret that lets them; one of 16 characters or more makes the inspector
            be there, too. Without one the node makes one and prints it when it starts.
        inspector_hosts: names by which browsers may come to it besides addresses and localhost.
        inspector_shows_payloads: whether they see what is published.
        workers: number of processes that serve clients, or ``auto`` for one a core; 1 is a single
            process.
        log_format: ``auto``, ``console`` or ``json``; ``auto`` is readable on a terminal and JSON
            otherwise.
    """

    host: str = "127.0.0.1"
    port: int = 6001
    uds: str | None = None
    is_uds_only: bool = False
    tls_cert: str | None = None
    tls_key: str | None = None
    admin_host: str = "127.0.0.1"
    admin_port: int | None = None
    has_admin: bool = True
    control: str | None = None
    trusts_proxy: bool = False
    proxy_protocol: bool = False
    locks_memory: bool = False
    sends_traces: bool = False
    drain_s: float = 5.0
    drain_code: int = DRAIN_CODES[0]
    webhook_flush_s: float = 5.0
    exit_limit_s: float = 20.0
    inspector: bool = False
    inspector_token: str | None = None
    inspector_hosts: tuple[str, ...] = ()
    inspector_shows_payloads: bool = False
    workers: int | str = 1
    log_format: str = "auto"
    log_level: str = "info"

    def check(self) -> None:
        """Check what types cannot say.

        Raises:
            ConfigError: names field, rule and remedy.
        """
        self._check_addresses()
        self._check_paths()
        self._check_inspector()
        text = str(self.workers)  # the environment has only text
        if text != "auto" and not (text.isdecimal() and 1 <= int(text) <= MAX_WORKERS):
            raise ConfigError(
                "server.workers",
                f"must be a number from 1 to {MAX_WORKERS}, or auto, is {self.workers!r}.",
                "auto is one a core; 1 is a single process, which needs no engine.",
            )
        if self.log_format not in {"auto", "console", "json"}:
            raise ConfigError("server.log_format", "must be auto, console or json.")
        if self.log_level not in {"debug", "info", "warning", "error"}:
            raise ConfigError("server.log_level", "must be debug, info, warning or error.")
        if not 0 <= self.drain_s < inf:
            raise ConfigError("server.drain_s", f"must be 0 or more and finite, is {self.drain_s}.")
        if not 0 <= self.webhook_flush_s < inf:
            raise ConfigError(
                "server.webhook_flush_s",
                f"must be 0 or more and finite, is {self.webhook_flush_s}.",
            )
        if self.drain_code not in DRAIN_CODES:
            raise ConfigError("server.drain_code", f"must be 4100 or 4200, is {self.drain_code}.")
        if not self.drain_s < self.exit_limit_s < inf:
            raise ConfigError(
                "server.exit_limit_s", "must be greater than server.drain_s and finite."
            )

    @property
    def has_inspector(self) -> bool:
        """Whether people may look into the node."""
        return self.inspector or self.inspector_token is not None

    def _check_inspector(self) -> None:
        if self.inspector_token is not None and not TOKEN.fullmatch(self.inspector_token):
            raise ConfigError(
                "server.inspector_token",
                "must be 16 to 200 printable characters of ASCII, without spaces.",
                "`openssl rand -hex 16` makes one; leave it out to have the node make one.",
            )
        if self.has_inspector and not self.has_admin:
            raise ConfigError("server.inspector", "needs the admin address.", "Set has_admin.")

    def _check_paths(self) -> None:
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ConfigError("server.tls_cert", "tls_cert and tls_key must be given together.")
        if self.control == "":
            raise ConfigError("server.control", "must be a path, or off.", "Or leave it out.")
        if self.uds == "":
            raise ConfigError("server.uds", "must be a path.", "Or leave it out.")
        if self.is_uds_only and self.uds is None:
            raise ConfigError("server.is_uds_only", "needs server.uds, the path to listen at.")

    def _check_addresses(self) -> None:
        for field in ("port", "admin_port"):
            port = getattr(self, field)
            if port is not None and not 0 <= port <= 65_535:
                raise ConfigError(f"server.{field}", f"must be 0 to 65535, is {port}.")
        for field in ("host", "admin_host"):
            host = getattr(self, field)
            if not host or host.count(":") == 1:  # two and more are IPv6's
                raise ConfigError(
                    f"server.{field}",
                    f"must be an address or a name, without a port, is {host!r}.",
                    "127.0.0.1 is this machine only, 0.0.0.0 everybody's.",
                )
        if self.has_admin and self.admin_port == self.port != 0:
            raise ConfigError(
                "server.admin_port",
                f"must be another one than server.port, {self.port}.",
                "Leave it out to take the next one.",
            )


class FileConfig(BrokerConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole configuration file: the node's limits, ``[server]``, ``[bus]`` and ``[[apps]]``."""

    server: ServerConfig = ServerConfig()

    @property
    def is_demo(self) -> bool:
        """Whether the demonstration app's secret, which is public, is among those served."""
        return any(pair.secret == DEMO_APP.secret for app in self.apps for pair in app.key_pairs)


#: Environment variable -> path of the field it sets. The last part names an app's field where
#: the path starts with ``app``: the environment and flags describe one app, files any number.
ENVIRONMENT: dict[str, tuple[str, ...]] = {
    "CACHECAST_HOST": ("server", "host"),
    "CACHECAST_PORT": ("server", "port"),
    "CACHECAST_UDS": ("server", "uds"),
    "CACHECAST_UDS_ONLY": ("server", "is_uds_only"),
    "CACHECAST_ADMIN_HOST": ("server", "admin_host"),
    "CACHECAST_ADMIN_PORT": ("server", "admin_port"),
    "CACHECAST_CONTROL": ("server", "control"),
    "CACHECAST_INSPECTOR": ("server", "inspector"),
    "CACHECAST_INSPECTOR_TOKEN": ("server", "inspector_token"),
    "CACHECAST_INSPECTOR_SHOWS_PAYLOADS": ("server", "inspector_shows_payloads"),
    "CACHECAST_TLS_CERT": ("server", "tls_cert"),
    "CACHECAST_TLS_KEY": ("server", "tls_key"),
    "CACHECAST_LOCK_MEMORY": ("server", "locks_memory"),
    "CACHECAST_OTEL": ("server", "sends_traces"),
    "CACHECAST_WORKERS": ("server", "workers"),
    "CACHECAST_LOG_FORMAT": ("server", "log_format"),
    "CACHECAST_LOG_LEVEL": ("server", "log_level"),
    "CACHECAST_CLUSTER": ("cluster",),
    "CACHECAST_CACHE_TTL": ("cache_ttl_s",),
    "CACHECAST_BUS": ("bus", "urls"),
    "CACHECAST_BUS_SENTINEL": ("bus", "sentinel"),
    "CACHECAST_BUS_USERNAME": ("bus", "username"),
    "CACHECAST_BUS_PASSWORD": ("bus", "password"),
    "CACHECAST_BUS_PASSWORD_FILE": ("bus", "password_file"),
    "CACHECAST_BUS_TLS_CA": ("bus", "tls_ca"),
    "CACHECAST_BUS_PREFIX": ("bus", "prefix"),
    "CACHECAST_BUS_SEAL_KEY": ("bus", "seal_key"),
    "CACHECAST_BUS_SEAL_KEY_FILE": ("bus", "seal_key_file"),
    "CACHECAST_BUS_LEASE_S": ("bus", "lease_s"),
    "CACHECAST_BUS_OUTAGE_S": ("bus", "outage_s"),
    "CACHECAST_APP_ID": ("app", "id"),
    "CACHECAST_APP_KEY": ("app", "key"),
    "CACHECAST_APP_SECRET": ("app", "secret"),
}


def load_config(
    path: Path | None = None,
    *,
    text: str | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> FileConfig:
    """Read, merge and check a configuration.

    Args:
        path: a TOML file, or None.
        text: text that takes the place of the file's; None reads the file.
        environ: ``CACHECAST_*`` variables; others are ignored.
        flags: keyed like :data:`ENVIRONMENT`, values of the command line; None counts as absent.

    Raises:
        ConfigError: the file cannot be read, or a value breaks a rule; names where.
    """
    tree = _read_toml(path, text) if path else {}
    sources = _merge(tree, environ or {}, flags or {})
    _split_lists(tree)
    try:
        try:
            # strict=False: the environment has only text, so "6001" must do for 6001.
            config = msgspec.convert(tree, FileConfig, strict=False)
        except msgspec.ValidationError as error:
            raise _explain(error) from None
        if not config.apps and path is None:
            config = msgspec.structs.replace(config, apps=(DEMO_APP,))
        config.check()
        config.server.check()
    except ConfigError as error:
        source = sources.get(error.field)
        if source is None:
            raise
        remedy = f"{error.remedy} It was set by {source}.".lstrip()
        raise ConfigError(error.field, error.rule, remedy) from None
    return config


#: Lists of ``[bus]`` that may be given as one text, with white space between its parts: a URL has
#: commas of its own.
_LISTS: Final = ("urls", "sentinel", "seal_key")


def _split_lists(tree: dict[str, Any]) -> None:
    bus = tree.get("bus")
    for field in _LISTS:
        if isinstance(bus, dict) and isinstance(bus.get(field), str):
            bus[field] = bus[field].split()


def _merge(
    tree: dict[str, Any], environ: Mapping[str, str], flags: Mapping[str, object]
) -> dict[str, str]:
    """Put the environment's and the flags' values into ``tree``.

    Returns:
        Field -> the variable or flag that set it.

    Raises:
        ConfigError: half an app, or a table that is none.
    """
    # `CACHECAST_PORT=` is how compose files and unit files say "not set".
    given: dict[str, object] = {name: value for name, value in environ.items() if value != ""}
    given |= {name: value for name, value in flags.items() if value is not None}
    app: dict[str, object] = {}
    sources: dict[str, str] = {}
    for name in ENVIRONMENT.keys() & given.keys():
        *parents, field = ENVIRONMENT[name]
        is_flag = flags.get(name) is not None
        source = "--" + name.removeprefix("CACHECAST_").lower().replace("_", "-")
        where = "apps[0]" if parents == ["app"] else ".".join(parents)
        sources[f"{where}.{field}".lstrip(".")] = source if is_flag else name
        target = app if parents == ["app"] else tree
        if target is tree and parents:
            target = tree.setdefault(parents[0], {})
            if not isinstance(target, dict):
                raise ConfigError(parents[0], "must be a table.")
        target[field] = given[name]
    if app:
        if missing := [field for field in ("id", "key", "secret") if field not in app]:
            raise ConfigError(
                "app",
                f"id, key and secret must be given together; missing: {', '.join(missing)}.",
                "They are --app-id, --app-key and --app-secret, or CACHECAST_APP_ID, "
                "CACHECAST_APP_KEY and CACHECAST_APP_SECRET.",
            )
        tree["apps"] = [app]
    return sources


def _read_toml(path: Path, text: str | None) -> dict[str, Any]:
    try:
        if text is None:
            text = read_file(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(str(path), f"cannot be read: {reason}.") from None
    try:
        return tomllib.loads(text)
    except ValueError as error:  # TOML's own among them, and that of a number with 5,000 digits
        raise ConfigError(str(path), f"is not valid TOML: {error}.") from None
    except RecursionError:
        raise ConfigError(str(path), "is nested too deeply.") from None


#: Where a field may stand -> its table, and how a file says so.
_TABLES: dict[str, tuple[type[msgspec.Struct], str]] = {
    "": (FileConfig, "at the top, before the first table"),
    "server": (ServerConfig, "in [server]"),
    "bus": (BusConfig, "in [bus]"),
    "apps": (App, "in [[apps]]"),
    "apps.keys": (KeyPair, "in an app's keys"),
    "apps.webhooks": (Webhook, "in an app's webhooks"),
}

#: msgspec's names of types, in words for people who write TOML.
_EXPECTED = {
    "array": "a list", "object": "a table", "str": "text in quotes", "int": "a whole number",
    "float": "a number", "bool": "true or false",
}  # fmt: skip
_GOT = _EXPECTED | {"str": "text", "float": "a number with a fraction", "bool": "a truth value"}


def _explain(error: msgspec.ValidationError) -> ConfigError:
    """Turn msgspec's ``Expected `int`, got `str` - at `$.server.port``` into our three parts."""
    rule, _, where = str(error).partition(" - at ")
    field = where.strip("`").removeprefix("$").lstrip(".")
    if found := re.fullmatch(r"Object (contains unknown|missing required) field `(.*)`", rule):
        name = found[2]
        place = f"{field}.{name}".lstrip(".")
        if found[1] == "missing required":
            return ConfigError(place, "is required.")
        return ConfigError(place, "there is no such field.", _find_field(field, name))
    if found := re.fullmatch(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`", rule):
        expected, got = _EXPECTED.get(found[1], found[1]), _GOT.get(found[2], found[2])
        return ConfigError(field or "the file", f"must be {expected}, is {got}.")
    remedy = f"There are {', '.join(WEBHOOK_EVENTS)}." if "enum" in rule else ""
    return ConfigError(field or "the file", rule + ".", remedy)


def _find_field(where: str, name: str) -> str:
    """What was probably meant by a field that does not exist."""
    here = re.sub(r"\[\d+\]", "", where)
    for place, (kind, text) in _TABLES.items():
        if place != here and name in kind.__struct_fields__:
            return f"It belongs {text}."
    known = _TABLES[here][0].__struct_fields__ if here in _TABLES else ()
    for near in get_close_matches(name, known, 1):
        return f"Is {near} meant?"
    return "`cachecast check-config --fields` lists those that exist."
