"""The deployment under test: its URLs, its credentials, and whether one may aim at it.

Secrets come from an option, `CACHECAST_LOADTEST_SECRET`, or a file, and appear in no report, log or
`repr`. A host that is neither loopback nor private is not loaded before somebody said yes.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

from cachecast_load.net.transport import Address
from cachecast_load.pusher.protocol import Credentials

# What begins the name of every environment variable that stands for an option.
ENV = "CACHECAST_LOADTEST"

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OWN_HEADERS = {
    "host",
    "connection",
    "upgrade",
    "content-length",
    "transfer-encoding",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-extensions",
}
# A stamp of the ledger says in one byte by which of all URLs an event entered.
MAX_URLS = 100
# How an auth endpoint is asked: as pusher-js does, or as what frameworks' own HTTP clients send.
AUTH_BODIES = ("form", "json")
_HOSTED = re.compile(r"ws-([a-z0-9]+)\.pusher\.com")
_BETWEEN_URLS = re.compile(r"[\s,]+(?=[A-Za-z][A-Za-z0-9+.-]*://)")
_SOCKET_SCHEMES = {"ws": False, "wss": True, "http": False, "https": True}


class TargetError(ValueError):
    """The target cannot be used as given; the text says what to change."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One base URL, taken apart."""

    host: str
    port: int
    tls: bool
    prefix: str

    @property
    def host_header(self) -> str:
        """`host:port`, with brackets for IPv6."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"{name}:{self.port}"

    def url(self, scheme: str) -> str:
        """Return the URL under `ws` or `http`, with an `s` where it is TLS."""
        return f"{scheme}{'s' if self.tls else ''}://{self.host_header}{self.prefix}"


@dataclass(frozen=True, slots=True)
class Target:
    """Everything needed to talk to one deployment, which may be several nodes.

    Attributes:
        sockets: where WebSockets connect, one for each `--target`.
        apis: where publishes go; the same hosts unless given apart.
        credentials: app id, key and secret.
        headers: sent with every upgrade and request (an ingress may want some).
        ca_file: certificate authority to trust besides the system's.
        verify: False accepts any certificate; the report says so.
        auth_endpoint: where subscriptions are signed instead of here.
        auth_body: how it is asked, one of `AUTH_BODIES`.
        metrics_urls: Prometheus texts, scraped each second and added up.
        encryption_key: master key of encrypted channels; None makes one for the run.
    """

    sockets: tuple[Endpoint, ...]
    apis: tuple[Endpoint, ...]
    credentials: Credentials
    headers: tuple[tuple[str, str], ...] = ()
    ca_file: str | None = None
    verify: bool = True
    auth_endpoint: str | None = None
    auth_body: str = "form"
    metrics_urls: tuple[str, ...] = ()
    encryption_key: bytes | None = field(default=None, repr=False)

    @property
    def socket_urls(self) -> list[str]:
        """The URLs of `sockets`, in their order."""
        return [socket.url("ws") for socket in self.sockets]

    @property
    def api_urls(self) -> list[str]:
        """The URLs of `apis`, in their order."""
        return [api.url("http") for api in self.apis]

    @property
    def entrances(self) -> list[str]:
        """Every URL by which an event can enter, by the ledger's number of it.

        First those of the HTTP API, then the WebSockets' (client events).
        """
        return self.api_urls + self.socket_urls

    def require_same(self, sockets: Sequence[str], apis: Sequence[str]) -> None:
        """Refuse a part in a run over several URLs that are others here, or in another order.

        One and one is a matter of taste: a worker may reach the only target by another name.

        Raises:
            TargetError: they differ; the text has the URLs of both.
        """
        for option, ours, theirs in (
            ("--target", self.socket_urls, sockets),
            ("--api-url", self.api_urls, apis),
        ):
            if ours != list(theirs) and max(len(ours), len(theirs)) > 1:
                raise TargetError(
                    f"its {option} are {', '.join(ours)}, the master's {', '.join(theirs)}; give"
                    " both the same, in the same order"
                )

    def api_path(self, *parts: str) -> str:
        """Return the path of an HTTP API resource of the app, without the URL's prefix."""
        # No more than must be: a proxy that takes a prefix off writes anew what was signed.
        whole = (self.credentials.app_id, *parts)
        escaped = "/".join(quote(part, safe="!$&'()*+,;=:@") for part in whole)
        return f"/apps/{escaped}"

    def describe(self) -> dict[str, object]:
        """Return what a report may say: never the secret, nor header values."""
        return {
            "sockets": self.socket_urls,
            "apis": self.api_urls,
            "app_id": self.credentials.app_id,
            "key": self.credentials.key,
            "headers": [name for name, _ in self.headers],
            "verify": self.verify,
            "auth_endpoint": self.auth_endpoint,
            "metrics_urls": list(self.metrics_urls),
        }

    def hosts(self) -> list[str]:
        """Return every host that would get traffic, each once."""
        hosts = [endpoint.host for endpoint in (*self.sockets, *self.apis)]
        urls = (self.auth_endpoint, *self.metrics_urls)
        hosts += [parse_endpoint(url, is_resource=True).host for url in urls if url]
        return list(dict.fromkeys(hosts))


def parse_endpoint(url: str, *, is_resource: bool = False) -> Endpoint:
    """Take a base URL apart, or the URL of one resource, which may have a query.

    Raises:
        TargetError: no scheme, an unknown one, no host, or an impossible port.
    """
    try:
        parts: SplitResult = urlsplit(url)
        port = None if "," in parts.netloc else parts.port
    except ValueError as error:
        raise TargetError(f"{url!r} is not a URL: {error}") from error
    if parts.scheme not in _SOCKET_SCHEMES:
        raise TargetError(
            f"{url!r} has no scheme that is known here; write ws://, wss://, http:// or https://,"
            f" for example ws://127.0.0.1:6001"
        )
    if not parts.hostname:
        raise TargetError(f"{url!r} names no host")
    if "," in parts.netloc:
        raise TargetError(f"{url!r} names several hosts; each needs a URL of its own")
    if parts.username or parts.password:
        raise TargetError("credentials do not belong into the URL; use --key and --secret")
    if (parts.query and not is_resource) or parts.fragment:
        raise TargetError(f"{url!r} is not a base URL: leave out what follows the path")
    tls = _SOCKET_SCHEMES[parts.scheme]
    return Endpoint(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"))


def split_urls(given: str | Sequence[str]) -> tuple[str, ...]:
    """Return the URLs of a text (with commas or blanks between them) or of a list of such texts."""
    texts = [given] if isinstance(given, str) else given
    return tuple(
        url for text in texts if text.strip(" ,") for url in _BETWEEN_URLS.split(text.strip(" ,\n"))
    )


def _parse_endpoints(option: str, given: str | Sequence[str]) -> tuple[Endpoint, ...]:
    """Take several base URLs apart.

    Raises:
        TargetError: one cannot be used, is there twice, or there are too many.
    """
    endpoints = tuple(parse_endpoint(url) for url in split_urls(given))
    for endpoint in endpoints:
        if endpoints.count(endpoint) > 1:
            url = endpoint.url("http" if option == "--api-url" else "ws")
            raise TargetError(
                f"{option} {url} is given twice; give each once, the load is spread evenly"
            )
    if len(endpoints) > MAX_URLS:
        raise TargetError(
            f"{len(endpoints)} URLs for {option} are more than {MAX_URLS}; put a balancer before"
            " them and give its URL"
        )
    return endpoints


def _api_beside(socket: Endpoint) -> Endpoint:
    """Return where the HTTP API is if nothing is said: there too, or by hosted Pusher's names."""
    hosted = _HOSTED.fullmatch(socket.host)
    return replace(socket, host=f"api-{hosted[1]}.pusher.com") if hosted else socket


def make_target(
    *,
    url: str | Sequence[str],
    app_id: str,
    key: str,
    secret: str,
    api_url: str | Sequence[str] | None = None,
    headers: tuple[str, ...] = (),
    ca_file: str | None = None,
    verify: bool = True,
    auth_endpoint: str | None = None,
    auth_body: str | None = None,
    metrics_url: str | Sequence[str] | None = None,
    encryption_key: str | None = None,
    needs_api: bool = True,
) -> Target:
    """Build a target from what a user typed.

    Args:
        url: base URL of the WebSocket side, or several (see `split_urls`).
        app_id: the app's id, for the HTTP API.
        key: the app's key.
        secret: the app's secret, or `@PATH` of a file that holds it.
        api_url: base URL of the HTTP API, or several, where it is not the same host.
        headers: `Name: value` lines; `@PATH` is a file of them.
        ca_file: PEM file.
        verify: whether certificates are checked.
        auth_endpoint: URL that signs subscriptions.
        auth_body: how it is asked, `form` or `json`.
        metrics_url: URL of Prometheus metrics, or several.
        encryption_key: base64 of 32 bytes, or `@PATH` of a file that holds it.
        needs_api: whether app id and secret must be there, which only the HTTP API needs.

    Raises:
        TargetError: something is missing or malformed.
    """
    sockets = _parse_endpoints("--target", url)
    if not sockets:
        raise TargetError("--target is missing, for example ws://127.0.0.1:6001")
    metrics_urls = split_urls(metrics_url or ())
    needed = {"--key": key}
    if needs_api:
        needed = {"--app-id": app_id, **needed, "--secret": secret}
    missing = [name for name, value in needed.items() if not value]
    if missing:
        variables = (ENV + name.upper()[1:].replace("-", "_") for name in missing)
        raise TargetError(
            f"{_listed(missing)} missing: give {'them' if len(missing) > 1 else 'it'}, or set"
            f" {' and '.join(variables)}, or write {'them' if len(missing) > 1 else 'it'} under"
            " [target] in a plan"
        )
    pairs = [_read_header_option(line) for given in headers for line in _header_lines(given)]
    for extra in (auth_endpoint, *metrics_urls):
        if extra:
            parse_endpoint(extra, is_resource=True)
    if auth_body and auth_body not in AUTH_BODIES:
        raise TargetError(f"--auth-body {auth_body!r} is not one of {', '.join(AUTH_BODIES)}")
    if ca_file and not Path(ca_file).is_file():
        raise TargetError(f"--ca-file {ca_file}: there is no such file")
    return Target(
        sockets=sockets,
        apis=_parse_endpoints("--api-url", api_url or ()) or tuple(map(_api_beside, sockets)),
        credentials=Credentials(app_id or "", key, read_secret(secret or "")),
        headers=tuple(pairs),
        ca_file=ca_file,
        verify=verify,
        auth_endpoint=auth_endpoint,
        auth_body=auth_body or AUTH_BODIES[0],
        metrics_urls=tuple(dict.fromkeys(metrics_urls)),
        encryption_key=_read_key(encryption_key) if encryption_key else None,
    )


def _listed(names: Sequence[str]) -> str:
    """Return names with their verb: `a is`, `a and b are`, `a, b and c are`."""
    if len(names) == 1:
        return f"{names[0]} is"
    return f"{', '.join(names[:-1])} and {names[-1]} are"


def _read_header_option(line: str) -> tuple[str, str]:
    name, colon, value = line.partition(":")
    if not colon or not _TOKEN.fullmatch(name.strip()) or not value.isprintable():
        raise TargetError(f"--header wants 'Name: value', not {name!r}")
    if name.strip().lower() in _OWN_HEADERS:
        raise TargetError(f"--header {name.strip()} is set by the load test itself")
    return name.strip(), value.strip()


def _header_lines(given: str) -> list[str]:
    if not given.startswith("@"):
        return [given]
    return [line for line in _read_lines(given[1:], "the headers' file") if line.strip()]


def _read_key(given: str) -> bytes:
    try:
        key = base64.b64decode(read_secret(given), validate=True)
    except ValueError as error:
        raise TargetError("--encryption-key is not base64") from error
    if len(key) != 32:
        raise TargetError(f"--encryption-key must be 32 bytes in base64, not {len(key)}")
    return key


def read_secret(given: str) -> str:
    """Return the secret itself; `@PATH` reads the first line of a file.

    Raises:
        TargetError: the file cannot be read or is empty.
    """
    if not given.startswith("@"):
        return given
    lines = _read_lines(given[1:], "the secret's file")
    if not lines or not lines[0].strip():
        raise TargetError("the secret's file is empty")
    return lines[0].strip()


def _read_lines(path: str, what: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise TargetError(f"{what} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TargetError(f"{what} is not UTF-8 text") from error


def resolve(endpoint: Endpoint, target: Target) -> Address:
    """Look the host up once and prepare TLS.

    Raises:
        TargetError: the name does not resolve, or the CA file cannot be used.
    """
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TargetError(f"{endpoint.host} cannot be resolved: {error.strerror}") from error
    family, _, _, _, sockaddr = found[0]
    context = tls_context(target) if endpoint.tls else None
    return Address(family, sockaddr, endpoint.host, context)


def tls_context(target: Target) -> ssl.SSLContext:
    """Return how to check the target's certificates.

    Raises:
        TargetError: the CA file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=target.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise TargetError(f"--ca-file {target.ca_file}: {error}") from error
    if not target.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def public_hosts(target: Target) -> list[str]:
    """Return the hosts that are neither loopback nor private: the ones to ask about first.

    A name with several addresses is public if one is.

    Raises:
        TargetError: a name does not resolve.
    """
    return [host for host in target.hosts() if not _is_near(host)]


def _is_near(host: str) -> bool:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise TargetError(f"{host} cannot be resolved: {error.strerror}") from error
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    return all(address.is_loopback or address.is_private for address in addresses)
