"""What the end-to-end tests are played with: apps, their configuration, and who is where.

Every app of the session's server is a rule of its own, so that one process serves all tests and
no test can disturb another: they also use channel names of their own.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path


class Credentials(NamedTuple):
    id: str
    key: str
    secret: str


MAIN = Credentials("4242", "app-key", "app-secret")
OLD_KEY = Credentials("4243", "old-key", "old-secret")
NEW_KEY = Credentials("4243", "new-key", "new-secret")
DISABLED = Credentials("4244", "disabled-key", "disabled-secret")
TLS_ONLY = Credentials("4245", "tls-key", "tls-secret")
AUTHORIZED_ONLY = Credentials("4246", "authorized-key", "authorized-secret")
CROWDED = Credentials("4247", "crowded-key", "crowded-secret")
ELSEWHERE = Credentials("4248", "elsewhere-key", "elsewhere-secret")
QUIET = Credentials("4249", "quiet-key", "quiet-secret")
ORIGIN = Credentials("4250", "origin-key", "origin-secret")
COMPRESSING = Credentials("4251", "compressing-key", "compressing-secret")
FOLLOWED = Credentials("4252", "followed-key", "followed-secret")

#: 32 bytes, base64; never told to the server under test.
MASTER_KEY = "bm90IGEgc2VjcmV0LCBvbmx5IDMyIGJ5dGVzIGxvbmc="

#: Of ``AUTHORIZED_ONLY``.
AUTHORIZATION_TIMEOUT_S = 0.5

_CONFIG = """
cluster = "here"
activity_timeout_s = 120

[server]
log_format = "json"
drain_s = 1

[[apps]]
id = "4242"
key = "app-key"
secret = "app-secret"
allows_client_events = true
sends_subscription_counts = true
{webhooks}

[[apps]]
id = "4243"
allows_client_events = true
keys = [
    {{ key = "old-key", secret = "old-secret" }},
    {{ key = "new-key", secret = "new-secret" }},
]
{rotating_webhooks}

[[apps]]
id = "4244"
key = "disabled-key"
secret = "disabled-secret"
is_enabled = false

[[apps]]
id = "4245"
key = "tls-key"
secret = "tls-secret"
is_tls_only = true

[[apps]]
id = "4246"
key = "authorized-key"
secret = "authorized-secret"
requires_authorization = true
authorization_timeout_s = {authorization_timeout_s}

[[apps]]
id = "4247"
key = "crowded-key"
secret = "crowded-secret"
max_connections = 1

[[apps]]
id = "4248"
key = "elsewhere-key"
secret = "elsewhere-secret"
cluster = "elsewhere"

[[apps]]
id = "4249"
key = "quiet-key"
secret = "quiet-secret"

[[apps]]
id = "4250"
key = "origin-key"
secret = "origin-secret"
allowed_origins = ["app.example.org"]

[[apps]]
id = "4251"
key = "compressing-key"
secret = "compressing-secret"
compresses = true
allows_client_events = true

[[apps]]
id = "4252"
key = "followed-key"
secret = "followed-secret"
cors_origins = ["*"]
cache_ttl_s = 6
"""

_WEBHOOK = '[[apps.webhooks]]\nurl = "{url}"\n'


def write_config(directory: Path, *, webhooks: str = "", rotating_webhooks: str = "") -> Path:
    """Write the configuration of a server with all apps.

    Args:
        directory: of the file.
        webhooks, rotating_webhooks: URL that the main and the rotating app tell; empty: none.
    """
    path = directory / "cachecast.toml"
    text = _CONFIG.format(
        webhooks=_WEBHOOK.format(url=webhooks) if webhooks else "",
        rotating_webhooks=_WEBHOOK.format(url=rotating_webhooks) if rotating_webhooks else "",
        authorization_timeout_s=AUTHORIZATION_TIMEOUT_S,
    )
    path.write_text(text, encoding="utf-8")
    return path


_numbers = itertools.count(1)


def fresh(prefix: str = "") -> str:
    """Return a name that no other test uses, for a channel or a user."""
    return f"{prefix}e2e-{next(_numbers)}"


class Kind(NamedTuple):
    """A kind of channel and what is true of it, by protocol.md 2.1."""

    prefix: str
    is_cache: bool
    is_presence: bool
    is_encrypted: bool


KINDS = [
    Kind("", is_cache=False, is_presence=False, is_encrypted=False),
    Kind("cache-", is_cache=True, is_presence=False, is_encrypted=False),
    Kind("private-", is_cache=False, is_presence=False, is_encrypted=False),
    Kind("private-cache-", is_cache=True, is_presence=False, is_encrypted=False),
    Kind("private-encrypted-", is_cache=False, is_presence=False, is_encrypted=True),
    Kind("private-encrypted-cache-", is_cache=True, is_presence=False, is_encrypted=True),
    Kind("presence-", is_cache=False, is_presence=True, is_encrypted=False),
    Kind("presence-cache-", is_cache=True, is_presence=True, is_encrypted=False),
]
CACHE_KINDS = [kind for kind in KINDS if kind.is_cache]
