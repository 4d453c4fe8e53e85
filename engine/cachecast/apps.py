"""An App: the credentials and limits of one tenant.

Everything here is decided at start-up and frozen. A limit is named after what it limits and ends
in its unit; defaults are hosted Pusher's where it documents one (protocol.md 9.4).
"""

from __future__ import annotations

import re
from math import inf
from typing import get_args
from urllib.parse import unquote, urlsplit

import msgspec

from cachecast.errors import ConfigError
from cachecast.events import AppEventName

__all__ = [
    "EVENT_OVERHEAD_BYTES",
    "MAX_CACHE_TTL_S",
    "ORIGINS_WITHOUT_HOST",
    "WEBHOOK_EVENTS",
    "App",
    "KeyPair",
    "Webhook",
]

#: Seconds that no cached value outlives: the promise of the product. Pusher says "up to 30
#: minutes".
MAX_CACHE_TTL_S = 1800.0

#: Number that is not reached by any limit: 64 bits hold no more, wherever it is sent.
MAX_NUMBER = 2**63

#: What browsers say for pages that no host has served: files, sandboxed frames, apps' web views.
ORIGINS_WITHOUT_HOST = frozenset({"null", "file://"})

#: RFC 9110 5.6.2.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

#: What an event has around its data, in a frame, in a request's body and in the cache: the names,
#: and what holds them together. Limits that an event must pass leave room for it. They cannot leave
#: room for every escape: JSON writes a quote in two bytes and a control character in six.
EVENT_OVERHEAD_BYTES = 1_024


class _Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of what stands in a configuration file: an unknown field is an error, not a no-op."""


class KeyPair(_Config, frozen=True, kw_only=True):
    """One key and its secret. Several may be valid at once, so that a key can be rotated."""

    key: str
    secret: str

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Name the key only: a secret must never reach a log or a traceback."""
        return f"KeyPair(key={self.key!r})"


class Webhook(_Config, frozen=True, kw_only=True):
    """One URL that is told what happens in an app.

    Attributes:
        url: http or https URL.
        events: names of the events that it wants; empty means all seven.
        channel_prefixes: beginnings of the channels that it wants; empty means all.
        headers: header lines sent along with every request, for example a token of the receiver's.
    """

    url: str
    events: tuple[AppEventName, ...] = ()
    channel_prefixes: tuple[str, ...] = ()
    headers: dict[str, str] = {}

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Leave the headers out: they may carry a token."""
        return f"Webhook(url={self.url!r}, events={self.events!r})"


class App(_Config, frozen=True, kw_only=True):
    """One tenant of the broker.

    Give either ``key`` and ``secret`` or ``keys``; with ``keys`` the first is the oldest, the one
    that signs webhooks (protocol.md 7).

    Attributes:
        id: the app's id in paths of the HTTP API; digits, if Pusher's Python and Go libraries are
            to accept it.
        cluster: the region the app lives in; None is any. A node of another cluster refuses the
            app with 4001, so that what is published to it never leaves its region.
        is_enabled: whether the app is served; if not, WebSockets get 4003 and HTTP requests 403.
        is_tls_only: whether TLS is asked for: plain WebSockets get 4000, which makes pusher-js come
            back with TLS, and plain HTTP requests 403.
        allows_client_events: whether clients may trigger events; off on hosted Pusher until
            switched on, so here too.
        sends_subscription_counts: whether there are ``subscription_count`` events and webhooks. The
            attribute of the HTTP API is given without it.
        allows_sign_in: whether ``pusher:signin`` is taken.
        allows_http_transports: whether clients may come without WebSockets, by pusher-js's
            ``xhr_streaming``, ``xhr_polling`` and ``sockjs``; if not, these get 403.
        requires_authorization: whether a connection that neither signs in nor joins a private or
            presence channel within ``authorization_timeout_s`` is closed with 4009; until it does,
            it does not count to ``max_connections``.
        allowed_origins: host names (``*.example.org`` fits subdomains) that a browser's Origin
            must match, or ``null`` and ``file://`` for pages without a host; empty allows all.
            Others are closed with 4009.
        cors_origins: origins, as ``https://app.example.org``, whose pages may read the HTTP API's
            answers to them; ``*`` is any. Whoever signs in a page gives its secret away: this is
            for pages that have requests signed elsewhere.
        compresses: whether events of 256 bytes and more are compressed for clients that offer
            permessage-deflate, as browsers do: once for all of them. A change concerns those who
            connect after it.
        cache_ttl_s: lifetime of cached values in seconds, never above 1800
            (:data:`MAX_CACHE_TTL_S`); the lower of this and the node's counts.
        max_cache_entries, max_cache_bytes: ceilings of the app's cached values, in number and in
            bytes; at one the oldest value goes first, and is counted.
        max_cache_readers: number of streams of cached values, and of reads that wait for one, that
            may be open at a node; past it 429.
        max_pending_bytes: bytes that may wait for one slow connection; past it the connection is
            closed with 4100. Cache channels keep one pending value each and do not grow.
        stall_timeout_s: seconds after which a connection that takes nothing is closed with 4100.
        max_undelivered_bytes: bytes of publications that wait for their turn; past it publishers
            wait.
    """

    id: str
    key: str = ""
    secret: str = ""
    keys: tuple[KeyPair, ...] = ()
    name: str = ""
    cluster: str | None = None

    is_enabled: bool = True
    is_tls_only: bool = False
    allows_client_events: bool = False
    sends_subscription_counts: bool = False
    allows_sign_in: bool = True
    allows_watchlists: bool = True
    allows_http_transports: bool = True
    requires_authorization: bool = False
    authorization_timeout_s: float = 30.0
    allowed_origins: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    compresses: bool = False

    cache_ttl_s: float | None = None
    max_cache_entries: int = 1_000_000
    max_cache_bytes: int = 256 * 1024 * 1024

    max_cache_readers: int = 1_000
    max_connections: int | None = None
    max_channels_per_connection: int = 1_000
    max_channel_name_length: int = 200
    max_event_name_length: int = 200
    max_event_bytes: int = 10_240
    max_channels_per_event: int = 100
    max_events_per_batch: int = 10
    max_presence_members: int = 100
    max_presence_member_bytes: int = 1_024
    max_user_id_length: int = 128
    max_watchlist_ids: int = 100
    client_events_per_s: float = 10.0
    messages_per_s: float = 200.0
    publishes_per_s: float | None = None

    max_pending_bytes: int = 1024 * 1024
    stall_timeout_s: float = 30.0
    max_undelivered_bytes: int = 16 * 1024 * 1024

    webhooks: tuple[Webhook, ...] = ()
    batches_webhooks: bool = False
    max_queued_webhook_events: int = 10_000

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Name the app only: never its secrets."""
        return f"App(id={self.id!r}, keys={[pair.key for pair in self.key_pairs]!r})"

    @property
    def key_pairs(self) -> tuple[KeyPair, ...]:
        """All active pairs, the oldest first."""
        first = (KeyPair(key=self.key, secret=self.secret),) if self.key else ()
        return first + self.keys

    def secret_of(self, key: str) -> bytes | None:
        """The secret that belongs to ``key``, or None if it is not a key of this app."""
        if key == self.key and key:
            return self.secret.encode()
        for pair in self.keys:
            if pair.key == key:
                return pair.secret.encode()
        return None

    def check(self, where: str) -> None:
        """Check what types cannot say.

        Args:
            where: the path of this app in the configuration, for error messages.

        Raises:
            ConfigError: names field, rule and remedy.
        """
        self._check_credentials(where)
        self._check_ttl(where)
        self._check_limits(where)
        self._check_origins(where)
        if self.cluster == "":
            raise ConfigError(f"{where}.cluster", "must name a region.", "Or leave it out.")
        check_visible(f"{where}.cluster", "it", self.cluster or "")
        for number, hook in enumerate(self.webhooks):
            _check_webhook(f"{where}.webhooks[{number}]", hook)

    def _check_credentials(self, where: str) -> None:
        if not self.id or "/" in self.id:
            raise ConfigError(f"{where}.id", "must be non-empty and without '/'.")
        check_visible(f"{where}.id", "it", self.id)
        _check_path_part(f"{where}.id", "it", self.id)
        if bool(self.key) != bool(self.secret):
            raise ConfigError(f"{where}.key", "key and secret must be given together.")
        if not self.key_pairs:
            raise ConfigError(
                f"{where}.key",
                "an app needs at least one key and secret.",
                "`cachecast generate app` makes them.",
            )
        for pair in self.key_pairs:
            if not pair.key or not pair.secret:
                raise ConfigError(f"{where}.keys", "key and secret must not be empty.")
            if ":" in pair.key or "/" in pair.key:
                raise ConfigError(f"{where}.keys", f"key {pair.key!r} must not contain ':' or '/'.")
            check_visible(f"{where}.keys", f"key {pair.key!r}", pair.key)
            check_visible(f"{where}.keys", f"the secret of key {pair.key!r}", pair.secret)
            _check_path_part(f"{where}.keys", f"key {pair.key!r}", pair.key)

    def _check_limits(self, where: str) -> None:
        for field in _POSITIVE:
            check_positive(f"{where}.{field}", getattr(self, field))
        for field, one in (
            ("max_pending_bytes", "max_event_bytes"),
            ("max_pending_bytes", "max_presence_member_bytes"),
            ("max_cache_bytes", "max_event_bytes"),
        ):
            require_room(
                f"{where}.{field}", getattr(self, field), f"{where}.{one}", getattr(self, one)
            )
        if self.max_channel_name_length > 1_000:
            raise ConfigError(
                f"{where}.max_channel_name_length", "must be at most 1000 characters."
            )

    def _check_origins(self, where: str) -> None:
        for number, host in enumerate(self.allowed_origins):
            # Compared with the host of an Origin header; what can be none would fit nobody.
            if host in ORIGINS_WITHOUT_HOST:
                continue
            if not host or set(host) & set("/[]@ ") or host.count(":") == 1:
                raise ConfigError(
                    f"{where}.allowed_origins[{number}]",
                    f"must be a host name without scheme and port, is {host!r}.",
                    "For example example.org, or *.example.org for its subdomains; null or file:// "
                    "for pages without a host.",
                )

        for number, origin in enumerate(self.cors_origins):
            # Compared with the whole of an Origin header, letter by letter.
            url = urlsplit(origin)
            is_origin = url.scheme in {"http", "https"} and bool(url.netloc) and "@" not in origin
            if origin != "*" and not (is_origin and origin == f"{url.scheme}://{url.netloc}"):
                raise ConfigError(
                    f"{where}.cors_origins[{number}]",
                    f"must be scheme, host and port of pages, is {origin!r}.",
                    "For example https://app.example.org, without a path; or * for all pages.",
                )

    def _check_ttl(self, where: str) -> None:
        if self.cache_ttl_s is not None and not 0 < self.cache_ttl_s <= MAX_CACHE_TTL_S:
            raise ConfigError(
                f"{where}.cache_ttl_s",
                f"must be greater than 0 and at most {MAX_CACHE_TTL_S:.0f} seconds, "
                f"is {self.cache_ttl_s:g}: that no cached value outlives 30 minutes is what "
                "cache channels promise.",
                "Lower it or leave it out.",
            )


def _check_webhook(where: str, hook: Webhook) -> None:
    if not _is_http_url(hook.url):
        raise ConfigError(f"{where}.url", f"must be an http or https URL, is {hook.url!r}.")
    check_visible(f"{where}.url", "it", hook.url)
    for name, value in hook.headers.items():
        if not _HEADER_NAME.fullmatch(name):
            raise ConfigError(f"{where}.headers", f"{name!r} is no name of a header.")
        check_visible(f"{where}.headers", f"the value of {name}", value)


def check_positive(field: str, value: float | None) -> None:
    """Refuse what is no limit: also nan, which TOML has, and what no machine counts to.

    Raises:
        ConfigError: it is neither None nor a number that can be reached.
    """
    if value is not None and not 0 < value < inf:
        raise ConfigError(field, f"must be greater than 0 and finite, is {value}.")
    if value is not None and value >= MAX_NUMBER:
        raise ConfigError(field, f"must be less than 2^63, is {value}.")


def check_visible(field: str, what: str, text: str) -> None:
    """Refuse what a copied text has by mistake, and nobody sees; the text is not shown.

    Raises:
        ConfigError: it begins or ends with white space, or something in it cannot be seen.
    """
    if text != text.strip():
        raise ConfigError(
            field,
            f"{what} must not begin or end with a blank or a line break.",
            "Was it read from a file whose last line ends in one?",
        )
    if not text.isprintable():
        raise ConfigError(
            field,
            f"{what} contains a character that cannot be seen.",
            "Copy it again, or type it; `cachecast generate app` makes new credentials.",
        )


def _check_path_part(field: str, what: str, text: str) -> None:
    """Refuse what is another text by the time it has travelled in the path of a URL.

    Some clients encode it and some do not (pusher-js, the server libraries), so it must mean the
    same either way.
    """
    if set(text) & set("?#\\") or text in {".", ".."}:
        rule = "must not contain '?', '#' or '\\', nor be '.' or '..'"
    elif unquote(text) != text:
        rule = "must not contain '%' before two hexadecimal digits"
    else:
        return
    raise ConfigError(
        field,
        f"{what} {rule}: it stands in the path of a URL, and not every client encodes it there.",
    )


def require_room(field: str, limit: int, small_field: str, small: int) -> None:
    """Check that one of what ``small_field`` allows passes the limit ``field``.

    Raises:
        ConfigError: it never could; names the least value that would do.
    """
    least = small + EVENT_OVERHEAD_BYTES
    if limit < least:
        raise ConfigError(
            field,
            f"must be at least {least}, is {limit}: {small_field} allows {small}, "
            f"and up to {EVENT_OVERHEAD_BYTES} bytes come around it.",
            f"Raise it, to a multiple if the data is full of quotes, or lower {small_field}.",
        )


def _is_http_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        return url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
    except ValueError:  # an open bracket, or a port that is no number
        return False


_POSITIVE = (
    "authorization_timeout_s",
    "max_cache_entries",
    "max_cache_bytes",
    "max_cache_readers",
    "max_connections",
    "max_channels_per_connection",
    "max_channel_name_length",
    "max_event_name_length",
    "max_event_bytes",
    "max_channels_per_event",
    "max_events_per_batch",
    "max_presence_members",
    "max_presence_member_bytes",
    "max_user_id_length",
    "max_watchlist_ids",
    "client_events_per_s",
    "messages_per_s",
    "publishes_per_s",
    "max_pending_bytes",
    "stall_timeout_s",
    "max_undelivered_bytes",
    "max_queued_webhook_events",
)

#: Names that a webhook may ask for: all there are.
WEBHOOK_EVENTS: tuple[AppEventName, ...] = get_args(AppEventName)
