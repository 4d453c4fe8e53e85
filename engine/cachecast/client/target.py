"""Where a client connects to, and how it gets a byte stream to there."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Final
from urllib.parse import quote, urlencode, urlsplit

import msgspec
import trio

from cachecast.errors import ConfigError

__all__ = ["Dial", "Target", "dialer", "find_target"]

#: Version of the protocol: 7 is the current one and the first that announces ``activity_timeout``
#: (protocol.md 1.2).
PROTOCOL: Final = 7

_IS_TLS: Final = {"ws": False, "wss": True, "http": False, "https": True}
_DEFAULT_PORT: Final = {False: 80, True: 443}


class Target(msgspec.Struct, frozen=True):
    """One WebSocket address.

    Attributes:
        host: name or address, without brackets.
        port: number of the TCP port.
        is_tls: whether TLS comes before HTTP.
        resource: path and query of the request.
    """

    host: str
    port: int
    is_tls: bool
    resource: str

    @property
    def host_header(self) -> str:
        """What ``Host:`` says: the port only where it is not the scheme's own (RFC 9110 7.2)."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORT[self.is_tls] else f"{host}:{self.port}"

    def with_tls(self) -> Target:
        """The same server over TLS, for close code 4000.

        Port 80 becomes 443. Any other port stays: only its operator knows another one, and can
        write it into a ``wss:`` URL.
        """
        port = 443 if self.port == 80 else self.port
        return Target(self.host, port, is_tls=True, resource=self.resource)


#: Function that opens the byte stream, TLS included. Raises OSError if that fails.
Dial = Callable[[Target], Awaitable[trio.abc.Stream]]


def find_target(url: str | None, key: str, cluster: str | None) -> Target:
    """The address of an app.

    Args:
        url: address ``ws:`` or ``wss:`` (``http:`` and ``https:`` mean the same) with host, port
            and any path prefix; ``/app/KEY`` is added, as every client library does (protocol.md
            1.1).
        key: key of the app.
        cluster: name of a cluster of hosted Pusher, for example ``eu``; instead of ``url``. A
            cluster is never sent, it is only part of the host name.

    Raises:
        ConfigError: neither or both of ``url`` and ``cluster``, or a URL that is none.
    """
    if (url is None) == (cluster is None):
        raise ConfigError("url", "give either a url or a cluster of hosted Pusher")
    if not key:
        raise ConfigError("key", "must be the key of an app")
    parts = urlsplit(url if url is not None else f"wss://ws-{cluster}.pusher.com")
    try:
        is_tls = _IS_TLS.get(parts.scheme)
        port = parts.port
    except ValueError as error:
        raise ConfigError("url", f"has a port that is none: {error}.") from None
    if is_tls is None or not parts.hostname:
        raise ConfigError(
            "url", f"must look like ws://host:port or wss://host, not {url!r}.",
        )  # fmt: skip
    query = urlencode({"protocol": PROTOCOL, "client": "cachecast", "version": _version()})
    resource = f"{parts.path.rstrip('/')}/app/{quote(key, safe='')}?{query}"
    return Target(parts.hostname, port or _DEFAULT_PORT[is_tls], is_tls, resource)


def _version() -> str:
    try:
        return version("cachecast")
    except PackageNotFoundError:  # a checkout that was never installed
        return "0"


def dialer(ssl_context: ssl.SSLContext | None) -> Dial:
    """Make the :data:`Dial` for the network.

    Args:
        ssl_context: terms of TLS; None is Python's default, which verifies the certificate. It is
            made at most once, for loading the CA certificates takes tens of milliseconds.
    """
    context = ssl_context

    async def dial(target: Target) -> trio.abc.Stream:
        nonlocal context
        stream: trio.abc.Stream = await trio.open_tcp_stream(target.host, target.port)
        if not target.is_tls:
            return stream
        if context is None:
            context = ssl.create_default_context()
        secure = trio.SSLStream(stream, context, server_hostname=target.host, https_compatible=True)
        try:
            await secure.do_handshake()
        except BaseException:
            # Nobody else knows this stream yet.
            await trio.aclose_forcefully(secure)
            raise
        return secure

    return dial
