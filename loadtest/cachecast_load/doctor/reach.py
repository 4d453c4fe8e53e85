"""Names, ports and TLS: is anybody there, and may one believe that it is who it should be?"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sized
from typing import Any

from cachecast_load.doctor.case import Case, Door
from cachecast_load.doctor.findings import Finding, note, works, wrong
from cachecast_load.net.transport import Address
from cachecast_load.plan.target import TargetError, tls_context

_RESOLVE_S = 5.0
_CONNECT_S = 3.0
_MAX_ADDRESSES = 4
#: Days of a certificate that are few.
SOON_DAYS = 14
# X509_V_FLAG_NO_CHECK_TIME, which `ssl` does not name: to read a certificate that is over.
_NO_CHECK_TIME = 0x200000
_EXPIRED, _NOT_YET, _SELF_SIGNED, _SELF_SIGNED_CHAIN, _WRONG_NAME, _WRONG_IP = 10, 9, 18, 19, 62, 64


def reach(case: Case) -> Iterator[Finding]:
    """Resolve every name, connect to every address, and shake hands."""
    known: dict[tuple[str, int, bool], Address | None] = {}
    for door in case.doors:
        place = (door.endpoint.host, door.endpoint.port, door.endpoint.tls)
        if place not in known:
            known[place] = None
            yield from reach_door(case, door)
            known[place] = door.address
        door.address = known[place]


def reach_door(case: Case, door: Door) -> Iterator[Finding]:
    """Find a door's address; it has one afterwards if it can be used at all."""
    host = door.endpoint.host
    try:
        found = _resolve(host, door.endpoint.port, case.within(_RESOLVE_S))
    except TimeoutError:
        yield wrong(
            "dns.timeout",
            f"The name {host} was not resolved within {_RESOLVE_S:g} s.",
            "Check this machine's name servers (/etc/resolv.conf).",
        )
        return
    except OSError as error:
        yield wrong(
            "dns.unknown",
            f"The name {host} cannot be resolved: {error.strerror}.",
            "Check how it is spelt. Hosted Pusher is ws-CLUSTER.pusher.com for clients and"
            " api-CLUSTER.pusher.com for the HTTP API.",
        )
        return
    addresses = list(dict.fromkeys((family, sockaddr) for family, _, _, _, sockaddr in found))
    tried = [(*one, _connect(case, *one)) for one in addresses[:_MAX_ADDRESSES]]
    good = [one for one in tried if not one[2]]
    for _, sockaddr, fault in tried:
        if fault and good:
            yield note(
                "tcp.some",
                f"{host} is also {sockaddr[0]}, where the connection fails: {fault}.",
                "Take the address out of the DNS or serve it too: clients that try it first wait,"
                " or fail.",
            )
    if not good:
        yield _unreachable(door, tried[0][2] if tried else "it has no address")
        return
    family, sockaddr, _ = good[0]
    if not door.endpoint.tls:
        door.address = Address(family, sockaddr, host)
        return
    try:
        context = tls_context(case.target)
    except TargetError as error:
        yield wrong("tls.ca-file", f"{error}.", "Give a PEM file with the authority's certificate.")
        return
    yield from _shake_hands(case, door, Address(family, sockaddr, host, context))
    if door.address is None:
        return
    if not case.target.verify:
        yield note(
            "tls.insecure", f"No certificate of {door.url} was checked, since --insecure says so."
        )


def _resolve(host: str, port: int, within_s: float) -> list[Any]:
    """Look a name up.

    Raises:
        TimeoutError: it took longer; the look-up goes on in a thread that nobody waits for.
        OSError: there is no such name.
    """
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        pass  # a name, whose look-up cannot be interrupted
    # Not before it is needed: who only imports this (every command does) has no hub started.
    import gevent  # noqa: PLC0415
    import gevent.socket  # noqa: PLC0415

    with gevent.Timeout(within_s, TimeoutError()):
        return list(gevent.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _connect(case: Case, family: int, sockaddr: Any) -> str:  # noqa: ANN401 - as `socket` has it
    """Connect and close; returns what failed, or an empty text."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(case.within(_CONNECT_S))
        try:
            sock.connect(sockaddr)
        except TimeoutError:
            return f"no answer within {_CONNECT_S:g} s"
        except OSError as error:
            return (os.strerror(error.errno) if error.errno else str(error)).lower()
    return ""


def _unreachable(door: Door, fault: str) -> Finding:
    if fault == os.strerror(errno.ECONNREFUSED).lower():
        return wrong(
            "tcp.refused",
            f"Nobody listens at {door.url}: the connection is refused.",
            "Check the port, whether the server runs, and whether it listens on this address and"
            " not on its own loopback only.",
        )
    if fault.startswith("no answer"):
        return wrong(
            "tcp.timeout",
            f"{door.url} does not answer at all: {fault}.",
            "Check the address, and the firewall or security group in between.",
        )
    return wrong(
        "tcp.unreachable",
        f"{door.url} cannot be reached: {fault}.",
        "Check the address and this machine's network.",
    )


def _shake_hands(case: Case, door: Door, address: Address) -> Iterator[Finding]:
    assert address.tls is not None
    url = door.url
    try:
        with _tls(case, address, address.tls) as sock:
            version, certificate = sock.version() or "", sock.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        yield _distrust(case, door, address, error)
        careless = ssl.create_default_context()
        careless.check_hostname = False
        careless.verify_mode = ssl.CERT_NONE
        door.address = dataclasses.replace(address, tls=careless)
        return
    except ssl.SSLError as error:
        yield _no_tls(door, error)
        return
    except OSError as error:
        yield wrong(
            "tls.cut",
            f"The TLS handshake with {url} is cut off ({(error.strerror or str(error)).lower()}).",
            "Check that TLS is served at this port, and for the name that is asked for (SNI).",
        )
        return
    door.address = address
    yield works(
        "tls", f"TLS at {url} is fine: {version}, the certificate fits the name.", version=version
    )
    yield from _soon_over(url, certificate)


@contextlib.contextmanager
def _tls(case: Case, address: Address, context: ssl.SSLContext) -> Iterator[ssl.SSLSocket]:
    with socket.socket(address.family, socket.SOCK_STREAM) as plain:
        plain.settimeout(case.within())
        plain.connect(address.sockaddr)
        with context.wrap_socket(plain, server_hostname=address.server_name) as sock:
            yield sock


def _no_tls(door: Door, error: ssl.SSLError) -> Finding:
    reason = (error.reason or str(error)).replace("_", " ").lower()
    url = door.url
    if any(words in reason for words in ("wrong version number", "http request", "record layer")):
        plain = dataclasses.replace(door.endpoint, tls=False).url(door.scheme)
        return wrong(
            "tls.none",
            f"{url}: that port does not speak TLS.",
            f"Use {plain} if plain text is meant, or the port that the certificate is served at.",
        )
    if "protocol version" in reason or "unsupported protocol" in reason:
        return wrong(
            "tls.version",
            f"{url} speaks only versions of TLS that are no longer safe ({reason}).",
            "Enable TLS 1.2 and 1.3 (nginx: ssl_protocols TLSv1.2 TLSv1.3).",
        )
    if "unrecognized name" in reason or "handshake failure" in reason:
        return wrong(
            "tls.name",
            f"{url} does not serve TLS for the name {door.endpoint.host} ({reason}).",
            "Add the name to the server's virtual hosts and certificate, or use the name that it"
            " knows.",
        )
    return wrong(
        "tls.failed",
        f"The TLS handshake with {url} fails: {reason}.",
        "Look into the server's log; it names the other half of it.",
    )


def _distrust(
    case: Case, door: Door, address: Address, error: ssl.SSLCertVerificationError
) -> Finding:
    """Say what is wrong with a certificate, and what one can do."""
    certificate, n_sent = _look(case, address)
    url, code = door.url, error.verify_code
    issuer = _name(certificate, "issuer")
    facts: dict[str, Any] = {
        "issuer": issuer,
        "subject": _name(certificate, "subject"),
        "names": _names(certificate),
        "not_after": certificate.get("notAfter", ""),
        "sent": n_sent,
    }
    if code in (_EXPIRED, _NOT_YET):
        when, which = (
            ("notAfter", "is over since")
            if code == _EXPIRED
            else ("notBefore", "is valid only from")
        )
        return wrong(
            "tls.expired" if code == _EXPIRED else "tls.not-yet",
            f"The certificate of {url} {which} {certificate.get(when, 'some time')}.",
            "Renew it and reload the server; if it was renewed already, the server still has the"
            " old one. If the date is not past, this machine's clock is wrong.",
            **facts,
        )
    if code in (_WRONG_NAME, _WRONG_IP):
        return wrong(
            "tls.name",
            f"The certificate of {url} is for {', '.join(facts['names']) or 'nobody'}, not for"
            f" {door.endpoint.host}.",
            "Use one of these names as the target, or get a certificate that has this one as well.",
            **facts,
        )
    if code == _SELF_SIGNED:
        return wrong(
            "tls.self-signed",
            f"The certificate of {url} is signed by itself, so that nobody else trusts it.",
            "Give it by --ca-file here and to every client, or get one from an authority (Let's"
            " Encrypt is free). Browsers refuse it without a word.",
            **facts,
        )
    if n_sent == 1 and code != _SELF_SIGNED_CHAIN:
        return wrong(
            "tls.incomplete",
            f"{url} sends one certificate only, and its issuer '{issuer}' is not known here: the"
            " chain is incomplete, or the authority is private.",
            "Serve the full chain, leaf first and then the intermediates (fullchain.pem; nginx:"
            " ssl_certificate). If it is an authority of your own, give its certificate by"
            " --ca-file.",
            **facts,
        )
    given = " by --ca-file" if case.target.ca_file else ""
    return wrong(
        "tls.private",
        f"The certificate of {url} comes from the authority '{issuer}', which is not"
        f" trusted{given} here.",
        "If it is an authority of your own, give its certificate by --ca-file, and to every"
        " client.",
        **facts,
    )


def _look(case: Case, address: Address) -> tuple[dict[str, Any], int]:
    """Return the leaf, whatever is wrong with it, and how many certificates were sent."""
    blind = ssl.create_default_context()
    blind.check_hostname = False
    blind.verify_mode = ssl.CERT_NONE
    # Trusted for itself, and at any time: only what was checked is shown as more than bytes.
    sees = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    sees.check_hostname = False
    sees.verify_flags = ssl.VerifyFlags(ssl.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME)
    try:
        with _tls(case, address, blind) as sock:
            leaf, n_sent = sock.getpeercert(binary_form=True), _n_sent(sock)
        sees.load_verify_locations(cadata=leaf or b"")
        with _tls(case, address, sees) as sock:
            return dict(sock.getpeercert() or {}), n_sent
    except (OSError, ssl.SSLError, ValueError):
        return {}, 0


def _n_sent(sock: Any) -> int:  # noqa: ANN401 - the method is public since Python 3.13
    inner = sock if hasattr(sock, "get_unverified_chain") else getattr(sock, "_sslobj", None)
    chain: Callable[[], Sized | None] | None = getattr(inner, "get_unverified_chain", None)
    return len((chain and chain()) or ())


def _name(certificate: dict[str, Any], whose: str) -> str:
    fields = {key: value for part in certificate.get(whose, ()) for key, value in part}
    named = fields.get("commonName") or fields.get("organizationName") or "unknown"
    return str(fields.get("organizationalUnitName") or named) if named == "unknown" else str(named)


def _names(certificate: dict[str, Any]) -> list[str]:
    return [str(value) for _, value in certificate.get("subjectAltName", ())]


def _soon_over(url: str, certificate: Any) -> Iterator[Finding]:  # noqa: ANN401 - as `ssl` has it
    until = certificate.get("notAfter")
    days = (ssl.cert_time_to_seconds(until) - time.time()) / 86_400 if until else SOON_DAYS
    if days < SOON_DAYS:
        yield note(
            "tls.soon",
            f"The certificate of {url} is over in {days:.0f} days ({until}).",
            "Renew it, and see to it that renewal works by itself.",
            days=round(days, 1),
        )
