"""Where the engine is: URLs and fields -> :class:`Primary`, each wrong value in a sentence.

``redis://``, ``rediss://``, ``valkey://`` and ``valkeys://`` (the ones that end in s speak TLS)
name hosts, ``unix://`` a socket. One URL may name several hosts, and several URLs may be given:
each is a primary of its own. With Sentinel names the hosts are Sentinels and each name is a
primary.

Nothing here shows a password: not in ``repr``, not in an error, whatever part of a URL was wrong.
"""

from __future__ import annotations

import re
from base64 import b64decode
from binascii import Error as BinasciiError
from math import inf
from typing import TYPE_CHECKING, Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from cachecast.errors import ConfigError
from cachecast.files import read_file

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["BusConfig", "Endpoint", "Primary", "read_keys"]

KEY_BYTES: Final = 32
DEFAULT_PORT: Final = 6379
SENTINEL_PORT: Final = 26379

_SCHEMES: Final = {
    "redis": False, "valkey": False, "rediss": True, "valkeys": True, "unix": False,
}  # fmt: skip

_EXAMPLE: Final = "For example valkey://10.0.0.5:6379, or unix:///run/valkey/valkey.sock."


class Endpoint(msgspec.Struct, frozen=True):
    """Something to connect to.

    Attributes:
        host, port: host and port of TCP; empty and 0 for a Unix socket.
        path: path of a Unix socket.
        is_tls: whether to speak TLS.
    """

    host: str = ""
    port: int = 0
    path: str = ""
    is_tls: bool = False

    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        if self.path:
            return self.path
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Primary(msgspec.Struct, frozen=True):
    """One independent primary of the engine.

    Attributes:
        endpoints: addresses of the primary, or those of the Sentinels that know where it is.
        sentinel: name of the primary at the Sentinels; empty if ``endpoints`` is its own.
        database: number of the database, for ``SELECT``.
        username, password: user and password of its ACL; empty for none.
    """

    endpoints: tuple[Endpoint, ...]
    sentinel: str = ""
    database: int = 0
    username: str = ""
    password: str = ""

    @property
    def name(self) -> str:
        """What all nodes call it: it decides which channels lie there, so it must be the same."""
        where = self.sentinel or str(self.endpoints[0])
        return f"{where}/{self.database}"

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Leave user and password out."""
        return f"Primary({self.name!r})"


class BusConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a node reaches the engine: ``[bus]`` of the configuration.

    Attributes:
        urls: URLs of the engine; none means that this node is alone.
        username, password: user and password for URLs that have none of their own.
        password_file: a file with nothing but the password, for secrets that are mounted.
        sentinel: names of primaries; then ``urls`` are Sentinels.
        sentinel_username, sentinel_password: user and password of the Sentinels themselves.
        tls_ca: path of a PEM file; None: the system's authorities.
        seal_key: keys of 32 bytes in base64 or hexadecimal; the first one seals, all of them open.
            None given: values are not sealed.
        seal_key_file: a file with such keys, one in a line, for secrets that are mounted.
        prefix: text before every key and topic, for several clusters on one engine.
        lease_s: seconds after which a silent node's members leave.
        silence_s: seconds without a byte from the engine, after which the link is down.
        outage_s: seconds for which clients are kept without an engine.
        max_pending: number of calls that may wait for the engine.
        max_unsent_bytes: number of bytes that may wait to be sent to it.
    """

    urls: tuple[str, ...] = ()
    username: str = ""
    password: str = ""
    password_file: str = ""
    sentinel: tuple[str, ...] = ()
    sentinel_username: str = ""
    sentinel_password: str = ""
    tls_ca: str | None = None
    seal_key: tuple[str, ...] = ()
    seal_key_file: str = ""
    prefix: str = ""
    lease_s: float = 3.0
    silence_s: float = 1.0
    outage_s: float = 30.0
    max_pending: int = 50_000
    max_unsent_bytes: int = 16 * 1024 * 1024

    def __repr__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        """Leave out whatever may carry a password."""
        return f"BusConfig({len(self.urls)} urls, prefix={self.prefix!r})"

    def check(self) -> None:
        """Check what types cannot say.

        Raises:
            ConfigError: names field, rule and remedy.
        """
        for field in ("lease_s", "silence_s", "outage_s", "max_pending", "max_unsent_bytes"):
            value = getattr(self, field)
            if not 0 < value < inf:
                raise ConfigError(f"bus.{field}", f"must be greater than 0 and finite, is {value}.")
        if self.lease_s < 2 * self.silence_s:
            raise ConfigError(
                "bus.lease_s",
                f"must be at least twice bus.silence_s, {self.silence_s:g} s, is "
                f"{self.lease_s:g} s: else a node is declared dead before it could reconnect.",
                "Raise it, or lower bus.silence_s.",
            )
        if not re.fullmatch(r"[A-Za-z0-9_.:\-]{0,64}", self.prefix):
            raise ConfigError(
                "bus.prefix",
                "must be at most 64 letters, digits and _ . : -; it stands in ACL patterns.",
                "For example `staging:`.",
            )
        if self.password and self.password_file:
            raise ConfigError("bus.password_file", "must not be given together with bus.password.")
        if self.seal_key and self.seal_key_file:
            raise ConfigError("bus.seal_key_file", "must not be given together with bus.seal_key.")
        if self.sentinel and not self.urls:
            raise ConfigError(
                "bus.sentinel", "needs the addresses of the Sentinels.", "Give them in bus.urls."
            )
        primaries = self.primaries()
        is_tls = any(end.is_tls for primary in primaries for end in primary.endpoints)
        if self.tls_ca and primaries and not is_tls:
            raise ConfigError(
                "bus.tls_ca",
                "is given, but no URL speaks TLS.",
                "Write valkeys:// or rediss://, or leave it out.",
            )
        self.keys()

    def primaries(self) -> tuple[Primary, ...]:
        """The primaries, in the order in which they were given.

        Reads ``password_file``.

        Raises:
            ConfigError: names field, rule and remedy; never shows a password.
        """
        password = self._read_password()
        found: list[Primary] = []
        for number, text in enumerate(self.urls):
            # A single URL is the rule, and `bus.urls[0]` would puzzle whoever gave a flag.
            where = "bus.urls" if len(self.urls) == 1 else f"bus.urls[{number}]"
            found += _read_url(
                text, where, self.username, password, for_sentinel=bool(self.sentinel)
            )
        if self.sentinel:
            return self._named(found)
        names = [primary.name for primary in found]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError("bus.urls", f"{name} is given twice.", "Remove one of them.")
        return tuple(found)

    def keys(self) -> tuple[bytes, ...]:
        """The seal keys, the one that seals first.

        Reads ``seal_key_file``.

        Raises:
            ConfigError: names field, rule and remedy; never shows a key.
        """
        if not self.seal_key_file:
            return read_keys(self.seal_key)
        lines = _read_secret("bus.seal_key_file", self.seal_key_file, "one key in a line").split()
        return read_keys(lines, "bus.seal_key_file")

    def _named(self, sentinels: list[Primary]) -> tuple[Primary, ...]:
        if not sentinels:
            raise ConfigError(
                "bus.sentinel", "needs the addresses of the Sentinels.", "Give them in bus.urls."
            )
        if any(found.endpoints[0].path for found in sentinels):
            raise ConfigError("bus.urls", "a Sentinel is no Unix socket.", "Give host and port.")
        if len({(s.database, s.username, s.password) for s in sentinels}) > 1:
            raise ConfigError(
                "bus.urls",
                "all Sentinels must name the same database, user and password: they are the "
                "primary's.",
                "Give user and password once, in bus.username and bus.password.",
            )
        for name in self.sentinel:
            if not name or self.sentinel.count(name) > 1:
                raise ConfigError("bus.sentinel", f"each name once and not empty, is {name!r}.")
        endpoints = tuple(found.endpoints[0] for found in sentinels)
        first = sentinels[0]
        return tuple(
            Primary(endpoints, name, first.database, first.username, first.password)
            for name in self.sentinel
        )

    def _read_password(self) -> str:
        if not self.password_file:
            return self.password
        text = _read_secret("bus.password_file", self.password_file, "nothing but the password")
        text = text.rstrip("\r\n")
        if not text or "\n" in text:
            raise ConfigError(
                "bus.password_file", f"{self.password_file} must hold one line, the password."
            )
        return text


def _read_secret(field: str, path: str, what: str) -> str:
    try:
        return read_file(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        # Of a decoding error even the position is left out: it quotes a byte of the secret.
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(
            field, f"{path} cannot be read: {reason}.", f"It must hold {what}."
        ) from None


def _read_url(
    text: str, where: str, username: str, password: str, *, for_sentinel: bool
) -> list[Primary]:
    """The primaries, or Sentinels, of one URL."""
    scheme = text.partition("://")[0] if "://" in text else ""
    if scheme not in _SCHEMES:
        got = f"is {scheme!r}" if re.fullmatch(r"[a-z0-9+.\-]{1,20}", scheme) else "is none of them"
        raise ConfigError(
            where,
            f"must begin with redis://, rediss://, valkey://, valkeys:// or unix://; {got}.",
            _EXAMPLE,
        )
    try:
        url = urlsplit(text)
    except ValueError:  # an open bracket; its words would quote the password
        raise ConfigError(where, "is not a URL: an IPv6 address needs [ and ].", _EXAMPLE) from None
    if url.fragment:
        raise ConfigError(
            where,
            "must not contain '#'.",
            "In a password write it as %23, or set bus.password.",
        )
    user_info, has_user, hosts = url.netloc.rpartition("@")
    if has_user:
        name, _, secret = user_info.partition(":")
        if not secret and not password:
            raise ConfigError(
                where,
                "names a user without a password.",
                "Set bus.password, or write user:password@.",
            )
        username, password = unquote(name), unquote(secret) or password
    if username and not password:
        raise ConfigError("bus.username", "needs a password.", "Set bus.password.")
    if scheme == "unix":
        return [Primary((_unix(url, hosts, where),), "", _database(url, where), username, password)]
    if url.query:
        raise ConfigError(
            where,
            "takes no ?parameters; the database is the path.",
            "For example valkey://10.0.0.5:6379/2.",
        )
    port = SENTINEL_PORT if for_sentinel else DEFAULT_PORT
    database = _database(url, where)
    return [
        Primary(
            (_endpoint(part, where, port, is_tls=_SCHEMES[scheme]),),
            "",
            database,
            username,
            password,
        )
        for part in hosts.split(",")
    ]


def _unix(url: SplitResult, hosts: str, where: str) -> Endpoint:
    path = unquote(url.path)
    if hosts or not path.startswith("/") or len(path) < 2:
        raise ConfigError(
            where,
            "unix:// must be followed by an absolute path.",
            "With three slashes: unix:///run/valkey/valkey.sock.",
        )
    if len(path.encode()) > 107:
        raise ConfigError(
            where, f"the path of a Unix socket is at most 107 bytes, this is {len(path.encode())}."
        )
    return Endpoint(path=path)


def _database(url: SplitResult, where: str) -> int:
    if url.scheme == "unix":
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        text = query.pop("db", "0")
        if query:
            raise ConfigError(where, "takes ?db=NUMBER and nothing else.")
    else:
        text = url.path.removeprefix("/") or "0"
    if not re.fullmatch(r"[0-9]{1,4}", text, re.ASCII):
        raise ConfigError(
            where,
            "the database must be a number from 0 to 9999.",
            "It stands behind the port: valkey://10.0.0.5:6379/2.",
        )
    return int(text)


def _endpoint(text: str, where: str, default_port: int, *, is_tls: bool) -> Endpoint:
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%a-z]+)\]|([^\[\]:@/\s]+))(?::([0-9]*))?", text)
    if not found:
        raise ConfigError(
            where,
            "each host must be a name or an address, with a port or without; IPv6 in [ ].",
            "Several are separated by commas: valkey://a:6379,b:6379. In user or password write "
            "@ / : , # and % as %40 %2F %3A %2C %23 %25.",
        )
    port = int(found[3]) if found[3] else default_port
    if not 0 < port < 65_536:
        raise ConfigError(where, f"a port must be 1 to 65535, is {port}.")
    return Endpoint((found[1] or found[2]).lower(), port, is_tls=is_tls)


def read_keys(texts: Sequence[str], field: str = "bus.seal_key") -> tuple[bytes, ...]:
    """Read ``bus.seal_key``.

    Args:
        texts: keys, each 32 bytes in base64 or hexadecimal.
        field: name of the field where they stand.

    Raises:
        ConfigError: names field, rule and remedy; never shows a key.
    """
    keys: list[bytes] = []
    for number, text in enumerate(texts):
        where = f"{field}[{number}]"
        key = _read_key(text.strip())
        if len(key) != KEY_BYTES:
            raise ConfigError(
                where,
                "must be 32 bytes in base64 or hexadecimal.",
                "`head -c 32 /dev/urandom | base64` makes one.",
            )
        if len(set(key)) < 8:
            raise ConfigError(where, "is no random key.", "Draw one from /dev/urandom.")
        if key in keys:
            raise ConfigError(where, "is given twice.", "Remove one of them.")
        keys.append(key)
    return tuple(keys)


def _read_key(text: str) -> bytes:
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text)
    try:
        return b64decode(text, validate=True)
    except (BinasciiError, ValueError):
        return b""
