"""TLS on non-blocking sockets: a handshake in steps, and a certificate that can be replaced.

An ``ssl.SSLSocket`` says "not now" in its own words; :class:`TlsSocket` says it in the words of a
plain socket, so that nobody above needs to know which of the two it has.
"""

from __future__ import annotations

import ssl
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Final

from cachecast.errors import ConfigError
from cachecast.files import read_file

if TYPE_CHECKING:
    import socket

__all__ = ["TlsSocket", "TlsTerms", "fault_of", "has_decrypted", "load_context"]

RECORD_BYTES: Final = 16 * 1024


def load_context(cert: Path | str, key: Path | str) -> ssl.SSLContext:
    """Read a certificate chain and its key, TLS 1.2 or newer. Blocks for the file reads.

    Raises:
        ConfigError: they cannot be read or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    held = []
    for field, path in (("server.tls_cert", cert), ("server.tls_key", key)):
        try:
            held.append(read_file(path))
        except OSError as error:
            raise ConfigError(field, f"{path} cannot be read: {error.strerror}.") from None
    try:
        # A key with a passphrase is an error, not a question on the terminal of a daemon.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise _explain(error, cert, key, *held) from None
    # Both ALPN answers mean the same here, and browsers offer h2 first.
    context.set_alpn_protocols(["http/1.1"])
    return context


def _explain(
    error: OSError, cert: Path | str, key: Path | str, held_cert: bytes, held_key: bytes
) -> ConfigError:
    """Say which of the two files is at fault; OpenSSL's own words are "PEM lib" for most of it."""
    if b"BEGIN CERTIFICATE" not in held_cert:
        return ConfigError("server.tls_cert", f"{cert} holds no certificate in PEM form.")
    if b"PRIVATE KEY" not in held_key:
        return ConfigError("server.tls_key", f"{key} holds no private key in PEM form.")
    if b"ENCRYPTED" in held_key:
        return ConfigError(
            "server.tls_key",
            f"{key} is protected by a passphrase, and nobody is there to ask.",
            f"`openssl pkey -in {key} -out KEY` takes it off; keep that file to yourself.",
        )
    if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
        return ConfigError("server.tls_key", f"{key} does not belong to certificate {cert}.")
    return ConfigError("server.tls_cert", f"{cert} with key {key} cannot be used: {error}.")


class TlsTerms:
    """The certificate that new connections get.

    Attributes:
        context: terms of TLS with the certificate; swapped whole by :meth:`take`; connections keep
            the one they began with.
        fingerprint: hash of both files.
    """

    def __init__(self, cert: Path | str, key: Path | str) -> None:
        """Read a certificate and its key; see :func:`load_context`."""
        self._paths = cert, key
        self.context: ssl.SSLContext = load_context(cert, key)
        self.fingerprint = _fingerprint(cert, key)

    def reload(self) -> None:
        """Read the files again.

        Raises:
            ConfigError: they cannot be used; the old certificate stays.
        """
        self.take(TlsTerms(*self._paths))

    def take(self, other: TlsTerms) -> None:
        """Give new connections another certificate. Never yields."""
        self._paths, self.fingerprint = other._paths, other.fingerprint
        self.context = other.context


def _fingerprint(cert: Path | str, key: Path | str) -> bytes:
    """What tells whether the files have changed; says nothing about the key."""
    try:
        return sha256(read_file(cert) + b"\0" + read_file(key)).digest()
    except OSError as error:  # it could be read a moment ago
        raise ConfigError(
            "server.tls_cert", f"{cert} or {key} cannot be read: {error.strerror}."
        ) from None


class TlsSocket:
    """A server-side TLS socket with the manners of a plain non-blocking one.

    Making one raises OSError if the peer has gone already; the plain socket is the caller's then.
    """

    __slots__ = ("_sock", "is_shaken")

    def __init__(self, sock: socket.socket, context: ssl.SSLContext) -> None:
        # ssl asks too, but what it raises then leaves the socket to the garbage collector.
        sock.getpeername()
        self._sock = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self.is_shaken: bool = False

    def fileno(self) -> int:
        """The socket's file descriptor."""
        return self._sock.fileno()

    def shake(self) -> bool:
        """Go on with the handshake; True once it is complete.

        Returns False while it waits to read. A server's flight is small enough for the empty
        buffer of a new socket, so waiting to write does not occur before the peer stops reading.

        Raises:
            OSError: it failed.
        """
        try:
            self._sock.do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        self.is_shaken = True
        return True

    def recv(self, limit: int) -> bytes:
        """Read up to ``limit`` decrypted bytes, after the handshake; b"" at the end.

        Raises:
            BlockingIOError: nothing is there.
            OSError: the handshake failed, or the connection is broken.
        """
        if not self.is_shaken and not self.shake():
            raise BlockingIOError
        parts: list[bytes] = []
        size = 0
        while size < limit:
            try:
                part = self._sock.recv(min(RECORD_BYTES, limit - size))
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if not parts:
                    raise BlockingIOError from None
                break
            except OSError:
                if not parts:
                    raise
                break  # what came before the end still counts; the next call finds it again
            if not part:
                break
            parts.append(part)
            size += len(part)
        return b"".join(parts)

    def pending(self) -> int:
        """Decrypted bytes that the selector cannot see."""
        return self._sock.pending()

    def send(self, data: bytes) -> int:
        """Encrypt and send as many records as fit; how many bytes they carried.

        What did not leave must be offered again later, the same bytes: OpenSSL has encrypted the
        next record already.

        Raises:
            BlockingIOError: nothing fits.
            OSError: the connection is broken.
        """
        sent = 0
        try:
            # One call writes one record, and what is larger would take the Poller a turn for each.
            while sent < len(data):
                sent += self._sock.send(data[sent : sent + RECORD_BYTES] if sent else data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            if not sent:
                raise BlockingIOError from None
        return sent

    def shutdown(self, how: int) -> None:
        """Say TLS's goodbye and end the sending half, so that a client need not wait for more.

        Raises:
            OSError: the connection is broken.
        """
        try:
            self._sock.unwrap()
        except (OSError, ValueError):
            pass  # it waits for the client's goodbye, which nobody does
        self._sock.shutdown(how)

    def close(self) -> None:
        """Close the socket without TLS's own goodbye: the frames above have said theirs."""
        self._sock.close()


def has_decrypted(sock: socket.socket | TlsSocket) -> bool:
    """Whether there is something to read that no selector knows of."""
    return isinstance(sock, TlsSocket) and sock.pending() > 0


def fault_of(error: OSError) -> str | None:
    """What TLS itself has to say of a connection's failure; None where somebody just left."""
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        return error.reason or ""
    return None
