"""Commands that need no server: ``check-config``, ``generate app``, ``sign``."""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin
from urllib.parse import urlencode

import click
import msgspec

from cachecast.apps import App, KeyPair, Webhook
from cachecast.changes import Changes
from cachecast.cli.control import ask_node, find_node
from cachecast.cli.reloads import ANSWER_LIMIT_S, Source, describe, read_certificate
from cachecast.cli.remote import credentials
from cachecast.cli.serve import count_workers
from cachecast.config import BusConfig, FileConfig, ServerConfig
from cachecast.errors import BadMessageError, ConfigError
from cachecast.protocol import auth
from cachecast.protocol.http_api import is_socket_id
from cachecast.protocol.identity import read_member, read_user
from cachecast.protocol.json_text import read_json
from cachecast.workers.shares import shares_of

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["check_config", "generate", "sign"]


@click.command(name="check-config")
@click.argument("path", type=click.Path(path_type=Path), required=False)
@click.option("--fields", is_flag=True, help="List every field with its type and default.")
@click.option(
    "--diff", is_flag=True, help="Say what a reload would change in the node that runs here."
)
@click.option("--port", help="Port of that node.  [default: by PATH]")
@click.option("--control", help="Path of that node's control socket.  [default: by the port]")
def check_config(
    path: Path | None, *, fields: bool, diff: bool, port: str | None, control: str | None
) -> None:
    """Check a configuration file as `serve` would read it.

    A fault is named by field, rule and remedy, with exit code 1. Without PATH the file that
    CACHECAST_CONFIG names is checked, or the environment alone.

    With --diff the node that runs here says what `cachecast reload` would do if PATH stood in the
    place of its file, with the options that it was started with; nothing is changed.
    """
    if fields:
        _print_fields()
        return
    if path is None and (named := os.environ.get("CACHECAST_CONFIG")):
        path = Path(named)
    if diff:
        text = None if path is None else _read(path)
        node = find_node(path, port, control)
        changes = ask_node(node, "diff", Changes, text, within_s=ANSWER_LIMIT_S)
        click.echo(describe(changes, "would change:", "nothing would change"))
        return
    config = Source(path, os.environ, {}).read()
    shares_of(config, count_workers(config.server.workers))
    read_certificate(config)
    apps = ", ".join(f"{app.id} (keys: {len(app.key_pairs)})" for app in config.apps)
    engine = ", ".join(primary.name for primary in config.bus.primaries())
    bus = f"; joined to other nodes by {engine}" if engine else ""
    click.echo(f"ok: listens on {_place(config)}; apps {apps}{bus}")


def _place(config: FileConfig) -> str:
    """Where clients come to."""
    options = config.server
    places = [] if options.is_uds_only else [f"{options.host}:{options.port}"]
    return " and ".join(places if options.uds is None else [*places, f"unix:{options.uds}"])


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(str(path), f"cannot be read: {reason}.") from None


#: Table, as a file opens it -> what may stand in it.
_TABLES: dict[str, type[msgspec.Struct]] = {
    "at the top": FileConfig,
    "[server]": ServerConfig,
    "[bus]": BusConfig,
    "[[apps]]": App,
    "[[apps.keys]]": KeyPair,
    "[[apps.webhooks]]": Webhook,
}

#: Type -> its name among people who write TOML.
_WORDS = {
    str: "text", int: "whole number", float: "number", bool: "true or false", tuple: "list",
    dict: "table",
}  # fmt: skip


def _print_fields() -> None:
    for title, kind in _TABLES.items():
        click.echo(title)
        for field in msgspec.structs.fields(kind):
            if field.name in {"apps", "bus", "server"}:
                continue
            click.echo(f"  {field.name}: {_word(field.type)}{_default(field)}")


def _word(kind: Any) -> str:  # noqa: ANN401 - a type of any kind
    if get_origin(kind) is UnionType:  # with None, which a file says by leaving the field out
        kind = get_args(kind)[0]
    return _WORDS[get_origin(kind) or kind]


def _default(field: msgspec.structs.FieldInfo) -> str:
    value = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
    if value is msgspec.NODEFAULT or value is None:
        return ""
    return f" = {msgspec.json.encode(value).decode()}"


@click.group(name="generate")
def generate() -> None:
    """Make credentials."""


@generate.command(name="app")
@click.option("--name", default="", help="Name of the app for people; not sent anywhere.")
def generate_app(name: str) -> None:
    """Print a new app, ready to be put into a configuration file.

    Its id is digits, because Pusher's Python and Go libraries accept nothing else.
    """
    lines = [
        "[[apps]]",
        f'id = "{secrets.randbelow(9_000_000) + 1_000_000}"',
        f'key = "{secrets.token_hex(10)}"',
        f'secret = "{secrets.token_hex(20)}"',
    ]
    if name:
        lines.append(f"name = {msgspec.json.encode(name).decode()}")
    click.echo("\n".join(lines))


@click.group(name="sign")
def sign() -> None:
    """Show what is signed and with what result: the thing people debug most."""


@sign.command(name="channel")
@click.argument("socket_id")
@click.argument("channel")
@click.argument("channel_data", required=False)
@credentials
def sign_channel(
    socket_id: str, channel: str, channel_data: str | None, app_id: str, key: str, secret: str
) -> None:
    """Sign a subscription to a private or presence channel.

    A presence channel needs CHANNEL_DATA, JSON with a user_id; or '' on a connection that is signed
    in, whose user it then is.
    """
    del app_id
    _check_socket_id(socket_id)
    if channel.startswith("presence-"):
        if channel_data is None:
            raise click.UsageError(
                f"{channel} is a presence channel, and CHANNEL_DATA is missing: for example "
                "'{\"user_id\":\"1\"}', exactly as it will be sent; or '' on a connection that is "
                "signed in."
            )
        if channel_data and _member(channel_data, "user_id") is None:
            raise click.UsageError("CHANNEL_DATA must be a JSON object with a user_id.")
        if channel_data:
            _check_identity(read_member, channel_data)
    elif not channel.startswith("private-"):
        click.echo(f"cachecast: {channel} is public: it needs no signature", err=True)
    _show(auth.subscription_text(socket_id, channel, channel_data), key, secret)


@sign.command(name="user")
@click.argument("socket_id")
@click.argument("user_data")
@credentials
def sign_user(socket_id: str, user_data: str, app_id: str, key: str, secret: str) -> None:
    """Sign a user's sign-in, unless USER_DATA is such that it would be refused."""
    _check_socket_id(socket_id)
    user_id = _member(user_data, "id")
    if not (isinstance(user_id, str) and user_id):
        raise click.UsageError("USER_DATA must be a JSON object whose id is a non-empty string.")
    _check_identity(read_user, user_data, App(id=app_id, key=key, secret=secret))
    _show(auth.signin_text(socket_id, user_data), key, secret)


@sign.command(name="request")
@click.argument("method", type=click.Choice(["GET", "POST"], case_sensitive=False))
@click.argument("path")
@click.option("--body", default="", help="Body of the request, exactly as it will be sent.")
@click.option(
    "--param", "params", multiple=True, help="Parameter of the query, NAME=VALUE; may be repeated."
)
@click.option("--timestamp", type=int, help="Unix seconds instead of now.")
@credentials
def sign_request(
    method: str, path: str, body: str, params: tuple[str, ...], timestamp: int | None,
    app_id: str, key: str, secret: str,
) -> None:  # fmt: skip
    """Sign an HTTP API request; PATH may be given without /apps/ID."""
    if not path.startswith(("/apps/", "/users/")):
        path = f"/apps/{auth.quote_part(app_id)}/{path.lstrip('/')}"
    query = dict(param.partition("=")[::2] for param in params)
    now = float(timestamp) if timestamp is not None else time.time()
    signed = auth.sign_request(
        key, secret.encode(), method.upper(), path, query, body.encode(), now
    )
    text = auth.request_text(method.upper(), path, list(signed.items()))
    click.echo(f"string to sign:\n{text}\n")
    click.echo(f"auth_signature: {signed['auth_signature']}\n")
    click.echo(f"request target:\n{path}?{urlencode(signed)}")


def _check_socket_id(text: str) -> None:
    if not is_socket_id(text):
        raise click.UsageError(f"SOCKET_ID must look like 1234.5678, is {text!r}.")


def _check_identity(read: Callable[..., object], *args: object) -> None:
    """Sign nothing that the broker would refuse, and say by which rule."""
    try:
        read(*args)
    except BadMessageError as error:
        raise click.UsageError(error.message) from None


def _member(text: str, name: str) -> object:
    """A member of a JSON object; None if there is none, or no object."""
    try:
        value = read_json(msgspec.json.decode, text)
    except (msgspec.DecodeError, RecursionError):
        return None
    return value.get(name) if isinstance(value, dict) else None


def _show(text: str, key: str, secret: str) -> None:
    click.echo(f"string to sign:\n{text}\n")
    click.echo(f"auth: {key}:{auth.sign(secret.encode(), text.encode())}")
