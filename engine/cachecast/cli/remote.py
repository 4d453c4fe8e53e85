"""Commands that talk to a server by URL: ours or any other that speaks the Pusher protocol."""

from __future__ import annotations

import os
import ssl
import time
from functools import wraps
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit, urlunsplit

import click
import httpx2
import msgspec
import trio

from cachecast.config import DEMO_APP
from cachecast.errors import EngineError
from cachecast.protocol import auth, encryption
from cachecast.protocol.channel_name import SERVER_TO_USER_PREFIX
from cachecast.protocol.json_text import read_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractAsyncContextManager

    from cachecast.client import Client

__all__ = ["cache", "channels", "credentials", "publish", "subscribe", "terminate"]

DEFAULT_URL = "http://127.0.0.1:6001"

#: Seconds that a server may take to answer one request.
ANSWER_LIMIT_S = 10.0

ENCRYPTED_PREFIX = "private-encrypted-"

_SCHEMES = frozenset({"http", "https", "ws", "wss"})


def credentials(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name an app; the environment fills what is not given."""

    @click.option(
        "--app-id",
        envvar="CACHECAST_APP_ID",
        default=DEMO_APP.id,
        show_default=True,
        help="Id of the app; or CACHECAST_APP_ID.",
    )
    @click.option(
        "--key",
        envvar="CACHECAST_APP_KEY",
        default=DEMO_APP.key,
        show_default=True,
        help="Key of the app; or CACHECAST_APP_KEY.",
    )
    @click.option(
        "--secret",
        envvar="CACHECAST_APP_SECRET",
        default=DEMO_APP.secret,
        show_default="of the demonstration app",
        help="Secret of the app; better as CACHECAST_APP_SECRET than on the command line.",
    )
    @wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - click's own arguments
        command(*args, **kwargs)

    return wrapper


def _check_url(context: click.Context, option: click.Parameter, url: str) -> str:
    """Take `host:port` for plain http, and refuse what names no server."""
    del context, option
    whole = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(whole)
        is_server = parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0
        is_server = is_server and not parts.query and not parts.fragment
    except ValueError:  # an open bracket, or a port that is no number
        is_server = False
    if not is_server:
        raise click.BadParameter(f"must look like http://host:port or wss://host, is {url!r}.")
    return whole


_url = click.option(
    "--url",
    envvar="CACHECAST_URL",
    default=DEFAULT_URL,
    show_default=True,
    callback=_check_url,
    help="Address of the server; http, https, ws and wss mean the same. Or CACHECAST_URL.",
)


_master_key = click.option(
    "--encryption-master-key",
    envvar="CACHECAST_ENCRYPTION_MASTER_KEY",
    help="32 bytes in base64, for encrypted channels; it stays in this process. Better given as "
    "CACHECAST_ENCRYPTION_MASTER_KEY.",
)


class RequestError(EngineError):
    """A server that cannot be reached or answered with an error."""


@click.command()
@click.argument("channel")
@click.argument("event")
@click.argument("data")
@click.option("--socket-id", help="Socket id of a connection that must not get it.")
@_master_key
@_url
@credentials
def publish(
    channel: str, event: str, data: str, *, socket_id: str | None,
    encryption_master_key: str | None, url: str, app_id: str, key: str, secret: str,
) -> None:  # fmt: skip
    """Publish DATA as EVENT to CHANNEL; several channels are separated by commas."""
    _warn_of_broken_json(data)
    names = [channel] if "," not in channel else channel.split(",")
    if any(name.startswith(ENCRYPTED_PREFIX) for name in names):
        # Each has a key of its own, and libraries refuse several at once for that reason.
        if encryption_master_key is None or len(names) > 1:
            raise RequestError("an encrypted channel takes one name and an --encryption-master-key")
        master_key = encryption.parse_master_key(encryption_master_key)
        data = encryption.encrypt(encryption.channel_key(master_key, channel), data)
    body: dict[str, object] = {"name": event, "channels": names, "data": data}
    if socket_id:
        body["socket_id"] = socket_id
    _request(url, app_id, key, secret, "POST", "events", body=msgspec.json.encode(body))
    click.echo(f"published {event} to {', '.join(names)}")


def _warn_of_broken_json(data: str) -> None:
    """Data may be any text, but who begins with a brace has most likely lost quotes to a shell."""
    text = data.strip().lstrip("'")
    if not text.startswith(("{", "[", '"')):
        return
    try:
        read_json(msgspec.json.decode, data)
    except (msgspec.DecodeError, RecursionError) as error:
        click.echo(
            f"cachecast: DATA looks like JSON and is none ({error}): it is sent as text. A shell "
            "takes quotes away unless they stand in '…'.",
            err=True,
        )


@click.command()
@click.option("--prefix", default="", help="Beginning of the names that are listed.")
@_url
@credentials
def channels(prefix: str, url: str, app_id: str, key: str, secret: str) -> None:
    """List the occupied channels."""
    params = {"filter_by_prefix": prefix} if prefix else {}
    if prefix.startswith("presence-"):
        params["info"] = "user_count"
    answer, _ = _request(url, app_id, key, secret, "GET", "channels", params)
    found = answer.get("channels", {})
    if not found:
        starts = f" that start with {prefix}" if prefix else ""
        click.echo(f"no occupied channels{starts}", err=True)
    for name, info in sorted(found.items()):
        users = f"  {info['user_count']} users" if "user_count" in info else ""
        click.echo(f"{name}{users}")


@click.command()
@click.argument("channel")
@_url
@credentials
def cache(channel: str, url: str, app_id: str, key: str, secret: str) -> None:
    """Show the cached value of CHANNEL and how long it will live; exit code 1 if it is empty."""
    path = f"channels/{auth.quote_part(channel)}"
    answer, _ = _request(url, app_id, key, secret, "GET", path, {"info": "cache"})
    cached = answer.get("cache")
    if not cached:
        raise RequestError(f"{channel} has no cached value")
    click.echo(cached["data"])
    if cached.get("ttl") is not None:
        click.echo(f"expires in {cached['ttl']} s", err=True)


@click.command()
@click.argument("user_id")
@_url
@credentials
def terminate(user_id: str, url: str, app_id: str, key: str, secret: str) -> None:
    """Disconnect all connections that are signed in as USER_ID."""
    path = f"users/{auth.quote_part(user_id)}/terminate_connections"
    _, headers = _request(url, app_id, key, secret, "POST", path, body=b"{}")
    match headers.get("x-cachecast-closed"):
        case None:
            click.echo(
                f"the server closes the connections that are signed in as {user_id}, if there are "
                "any; it does not say"
            )
        case "0":
            click.echo(f"nobody is signed in as {user_id}")
        case "1":
            click.echo(f"terminated 1 connection of {user_id}")
        case number:
            click.echo(f"terminated {number} connections of {user_id}")


@click.command()
@click.argument("channel")
@click.option("--count", type=click.IntRange(min=1), help="Number of events after which to end.")
@click.option(
    "--user-id", default="cli", show_default=True, help="Id of the user to be on presence channels."
)
@_master_key
@_url
@credentials
def subscribe(
    channel: str, count: int | None, user_id: str, encryption_master_key: str | None, url: str,
    app_id: str, key: str, secret: str,
) -> None:  # fmt: skip
    """Print the events of CHANNEL, its cached value first, until interrupted.

    One JSON object a line. Private and presence channels are authorized with the secret; for
    #server-to-user-ID the client signs in as ID.
    """
    del app_id
    from cachecast.client import connect  # noqa: PLC0415 - only this command pays for it

    address = _with_scheme(url, "ws")
    opened = connect(address, key=key, secret=secret, encryption_master_key=encryption_master_key)
    trio.run(_subscribe, opened, address, channel, count, user_id)


async def _subscribe(
    opened: AbstractAsyncContextManager[Client], url: str, channel: str, count: int | None,
    user_id: str,
) -> None:  # fmt: skip
    is_subscribed = trio.Event()
    async with opened as client, trio.open_nursery() as nursery:
        nursery.start_soon(_report, client, url, is_subscribed)
        if channel.startswith(SERVER_TO_USER_PREFIX):
            events = await client.sign_in({"id": channel.removeprefix(SERVER_TO_USER_PREFIX)})
        elif channel.startswith("presence-"):
            events = await client.subscribe(channel, user_id=user_id)
        else:
            events = await client.subscribe(channel)
        is_subscribed.set()
        n_printed = 0
        async for event in events:
            line = {"event": event.name, "channel": event.channel, "data": event.data}
            click.echo(msgspec.json.encode(line).decode())
            n_printed += 1
            if n_printed == count:
                break
        nursery.cancel_scope.cancel()


async def _report(client: Client, url: str, is_subscribed: trio.Event) -> None:
    """Say on stderr why nothing comes: no connection, or values that cannot be decrypted."""
    async for event in client.events:
        told = event.json()
        if event.name == "pusher:state_change":
            if told["current"] == "unavailable" and client.last_ending is not None:
                ending = client.last_ending
                # With a code the server has spoken, so it is there.
                advice = f" {_advise(ending.text)}" if ending.code == 1006 else ""
                click.echo(
                    f"cachecast: no connection to {url}: {ending.text}. Trying again.{advice}",
                    err=True,
                )
            elif told["previous"] == "unavailable":
                click.echo(f"cachecast: connected to {url}", err=True)
        elif told.get("code") is None and is_subscribed.is_set():
            # Before that it is about the subscription, which is refused with the same words; one
            # with a code ends the connection, and is told above.
            click.echo(f"cachecast: {told.get('message')}", err=True)


def _advise(text: str) -> str:
    """What to do about a connection that failed, by the words of its error."""
    if "CERTIFICATE_VERIFY_FAILED" in text:
        if any(word in text for word in ("expired", "not yet valid", "not valid for", "mismatch")):
            return "The server needs another certificate, or --url another name."
        if (named := os.environ.get("SSL_CERT_FILE")) is None:
            return "SSL_CERT_FILE names a file with the authority to trust, if it is your own."
        is_there = "has no such authority" if os.access(named, os.R_OK) else "cannot be read"
        return f"SSL_CERT_FILE names {named}, which {is_there}."
    if "[SSL" in text or "TLS" in text:
        return "Does the server speak TLS on that port? http:// and ws:// do without."
    if any(word in text for word in ("HTTP", "disconnected without", "hung up", "reset by peer")):
        return "Is it a Pusher server, and does it want https:// or wss://?"
    return "Is it running? `cachecast serve` starts one."


def _with_scheme(url: str, plain: str) -> str:
    """The same server by the other protocol; ``s`` is kept."""
    parts = urlsplit(url)
    is_tls = parts.scheme in {"https", "wss"}
    return urlunsplit(parts._replace(scheme=plain + "s" * is_tls))


def _request(
    url: str, app_id: str, key: str, secret: str, method: str, path: str,
    params: dict[str, str] | None = None, body: bytes = b"",
) -> tuple[dict[str, Any], Mapping[str, str]]:  # fmt: skip
    """Send a signed request and read its answer: body and headers.

    It is signed from ``/apps/`` on: what the server is reached under is its proxy's business.

    Raises:
        RequestError: the server cannot be reached or refuses; its words are kept.
    """
    target = f"/apps/{auth.quote_part(app_id)}/{path}"
    query = auth.sign_request(key, secret.encode(), method, target, params or {}, body, time.time())
    base = _with_scheme(url, "http").rstrip("/")
    try:
        response = httpx2.request(
            method,
            f"{base}{target}?{urlencode(query)}",
            content=body or None,
            headers={"Content-Type": "application/json"} if body else {},
            timeout=ANSWER_LIMIT_S,
            # The system's authorities, or those of SSL_CERT_FILE, as for `subscribe`.
            verify=ssl.create_default_context() if base.startswith("https:") else False,
            trust_env="CACHECAST_USE_PROXY" in os.environ,
        )
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        text = str(error) or type(error).__name__
        raise RequestError(f"{base} cannot be reached: {text}. {_advise(text)}") from None
    if response.status_code >= 400:
        raise RequestError(
            f"{base} answered {response.status_code}: {response.text.strip()[:1000]}"
        )
    try:
        answer = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        raise RequestError(f"{base} answered something that is not JSON") from None
    return answer if isinstance(answer, dict) else {}, response.headers
