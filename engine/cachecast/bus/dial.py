"""From a :class:`~cachecast.bus_config.Primary` to a connected stream: sockets, TLS, Sentinels.

Every failure is a :class:`~cachecast.bus.faults.LinkError` with a sentence. Nothing here waits by
itself; the caller's cancel scope bounds it, except that no single Sentinel may take longer than its
share.
"""

from __future__ import annotations

import socket
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from cachecast.bus.faults import LinkError, TlsError, UnfitError, UnreachableError
from cachecast.bus.resp import Connection
from cachecast.bus_config import Endpoint
from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachecast.bus_config import Primary

__all__ = ["Dialler", "tls_context"]

#: Seconds for one Sentinel; those that are down must not use up the time for those that are not.
SENTINEL_LIMIT_S: Final = 0.5


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """What the engine's certificate is checked by.

    Args:
        ca_file: path of a PEM file; None: the system's authorities.

    Raises:
        ConfigError: the file cannot be used.
    """
    try:
        return ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError:
        reason = "holds no certificate in PEM form"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    raise ConfigError("bus.tls_ca", f"{ca_file} {reason}.", "Give the authority's certificate.")


class Dialler:
    """Connects to wherever a primary is at the moment."""

    def __init__(
        self,
        primary: Primary,
        *,
        tls: ssl.SSLContext | None = None,
        sentinel_username: str = "",
        sentinel_password: str = "",
    ) -> None:
        """Prepare; see ``BusConfig`` for what the arguments mean."""
        self._primary = primary
        self._tls = tls
        self._credentials = (sentinel_username, sentinel_password)
        self._sentinels = list(primary.endpoints)

    async def connect(self) -> trio.abc.Stream:
        """A connected and encrypted stream to the primary, which the caller closes.

        If cancelled, nothing stays open.

        Raises:
            UnreachableError: nobody answers there, or no Sentinel knows where.
            TlsError: the handshake failed.
            LinkError: a Sentinel refuses us.
        """
        if not self._primary.sentinel:
            return await self._connect(self._primary.endpoints[0])
        return await self._connect(await self._find())

    async def _connect(self, endpoint: Endpoint) -> trio.abc.Stream:
        stream: trio.SocketStream
        try:
            if endpoint.path:
                stream = await trio.open_unix_socket(endpoint.path)
            else:
                stream = await trio.open_tcp_stream(endpoint.host, endpoint.port)
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        except OSError as error:
            raise UnreachableError(f"The engine at {endpoint} {_reason(error)}") from None
        if not endpoint.is_tls:
            return stream
        context = self._tls or ssl.create_default_context()
        encrypted = trio.SSLStream(stream, context, server_hostname=endpoint.host)
        try:
            with _as_tls_fault(endpoint):
                await encrypted.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        return encrypted

    async def _find(self) -> Endpoint:
        """Ask the Sentinels, one after the other, the one that knew last time first."""
        faults: list[str] = []
        for endpoint in tuple(self._sentinels):
            with trio.move_on_after(SENTINEL_LIMIT_S) as scope:
                try:
                    found = await self._ask(endpoint)
                except LinkError as fault:
                    faults.append(f"{endpoint}: {fault}")
                    continue
                self._sentinels.remove(endpoint)
                self._sentinels.insert(0, endpoint)
                return found
            if scope.cancelled_caught:
                faults.append(f"{endpoint}: no answer within {SENTINEL_LIMIT_S:g} s.")
        raise UnreachableError(
            f"No Sentinel says where {self._primary.sentinel} is. {' '.join(faults)}"
        )

    async def _ask(self, sentinel: Endpoint) -> Endpoint:
        connection = Connection(await self._connect(sentinel))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            try:
                await introduce(connection, *self._credentials)
                found = await connection.call(
                    "SENTINEL", "get-master-addr-by-name", self._primary.sentinel
                )
            except LinkError as error:
                fault: LinkError | None = error
                found = None
            else:
                fault = None
            nursery.cancel_scope.cancel()
        if fault is not None:
            raise fault
        if not found:
            raise UnfitError(f"It does not know {self._primary.sentinel}; see bus.sentinel.")
        host, port = (part.decode() for part in found)
        return Endpoint(host, int(port), is_tls=sentinel.is_tls)


async def introduce(
    connection: Connection, username: str, password: str, name: str = "cachecast"
) -> dict[bytes, object]:
    """Switch to RESP3 and log in; gives what the engine says of itself.

    Raises:
        LinkError: it refuses us, or is too old.
    """
    login = ("AUTH", username or "default", password) if password else ()
    about = await connection.call("HELLO", 3, *login, "SETNAME", name)
    if not isinstance(about, dict):
        raise UnfitError("What answers does not know HELLO 3. Redis 7.0 or any Valkey is needed.")
    return about


@contextmanager
def _as_tls_fault(endpoint: Endpoint) -> Iterator[None]:
    try:
        yield
    except trio.BrokenResourceError as error:
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            reason = f"its certificate is refused: {cause.verify_message}. See bus.tls_ca"
        elif isinstance(cause, ssl.SSLError):
            reason = f"{cause.reason or 'it fails'}. Does that port speak TLS"
        else:
            reason = "the connection ended. Does that port speak TLS"
        end = "." if reason.endswith("tls_ca") else "?"
        raise TlsError(f"TLS with the engine at {endpoint}: {reason}{end}") from None


def _reason(error: BaseException) -> str:
    if isinstance(error, socket.gaierror):
        return "has a name that is not known."
    # Of several addresses Trio reports each; the last one's words will do.
    group = error.__cause__
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[-1]
    words = getattr(group, "strerror", None) or getattr(error, "strerror", None) or str(error)
    return f"cannot be reached: {words}."
