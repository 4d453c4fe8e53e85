"""``cachecast watch``: what happens on a node, line by line.

Of this machine's nodes by the control socket, which needs no token and no inspector: whoever may
use it may stop the node, too. Of others by the inspector at their admin address, with its token.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import httpx2
import msgspec
import trio
from msgspec.structs import replace

from cachecast.broker.feed import KINDS, Happening, Wanted
from cachecast.cli.control import control_options, find_node
from cachecast.control.ask import open_call
from cachecast.control.line import Reply
from cachecast.errors import ControlError
from cachecast.server.access import PATH
from cachecast.server.console import ConsolePart

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from cachecast.broker.feed import Watch
    from cachecast.control.desk import Call, ControlDesk
    from cachecast.control.line import Line

__all__ = ["offer_watching", "watch_command"]

#: Seconds between two looks at what has not been sent, and between two signs of life without any.
FLUSH_S: Final = 0.2
BEAT_S: Final = 1.0

#: Seconds for a watcher to take something before it is let go.
STALL_S: Final = 10.0

#: Seconds without a word, of which there is one each two seconds, after which a node far away is
#: given up; and until one that has ended its stream is asked again.
SILENT_S: Final = 20.0
AGAIN_S: Final = 2.0

#: Number of those who watch by the control socket; others have to find room there.
MAX_WATCHERS: Final = 4


class Part(msgspec.Struct, frozen=True, array_like=True):
    """What has happened since the part before.

    Attributes:
        happenings: what is shown.
        left_out: kind -> number of those that are not.
    """

    happenings: list[Happening] = []
    left_out: dict[str, int] = {}


def offer_watching(
    watching: Callable[[Wanted], AbstractAsyncContextManager[Watch]], desk: ControlDesk
) -> None:
    """Have ``watch`` answered at a control socket.

    Queue: :data:`MAX_WATCHERS`, whose watches have bounds of their own; one more is refused.

    Args:
        watching: function that watches the node, within a block.
        desk: who answers at the socket.
    """
    n_watchers = 0

    async def answer(call: Call) -> None:
        nonlocal n_watchers
        if n_watchers >= MAX_WATCHERS:
            raise ControlError(f"{MAX_WATCHERS} watch already, which is the most: end one of them.")
        n_watchers += 1
        try:
            async with watching(call.read(Wanted)) as watch:
                await _tell(call, watch, desk)
        finally:
            n_watchers -= 1

    desk.add("watch", answer)


async def _tell(call: Call, watch: Watch, desk: ControlDesk) -> None:
    silent_s = BEAT_S
    while not desk.is_stopped:
        part = Part(*watch.take())
        if part.happenings or part.left_out or silent_s >= BEAT_S:
            silent_s = 0.0
            await _send(call, part)
        await trio.sleep(FLUSH_S)
        silent_s += FLUSH_S


async def _send(call: Call, part: Part) -> None:
    try:
        with trio.fail_after(STALL_S):
            await call.line.send(Reply("", msgspec.Raw(msgspec.msgpack.encode(part))))
    except trio.TooSlowError:
        raise ControlError("It takes nothing.") from None


@click.command(name="watch")
@click.argument("channels", nargs=-1, metavar="[CHANNEL]...")
@click.option("--app", help="Id of an app; all of them without.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="May be repeated.")
@click.option("--socket", "socket_id", help="Socket id of a connection.")
@click.option("--user", "user_id", help="Id of a user.")
@click.option("--json", "is_json", is_flag=True, help="One JSON object a line.")
@click.option(
    "--inspector",
    "address",
    metavar="URL",
    help="Watch by the inspector at this admin address; its token is CACHECAST_INSPECTOR_TOKEN, or "
    "asked for.",
)
@control_options
def watch_command(
    channels: tuple[str, ...],
    app: str | None,
    kinds: tuple[str, ...],
    socket_id: str | None,
    user_id: str | None,
    *,
    is_json: bool,
    address: str | None,
    **options: str | Path | None,
) -> None:
    """Show what happens on a node, until interrupted.

    Connections, subscriptions, events, API calls, and refusals with their reason; of CHANNELs only
    where some are named, and one that ends with * is a prefix. Under load it shows samples and says
    how many more there were. What was published is not shown, unless the node was started with
    --inspector-shows-payloads.
    """
    wanted = Wanted(frozenset(kinds), app, channels, socket_id, user_id)
    show = partial(_show, is_json=is_json)
    if address is None:
        path = find_node(**options)  # type: ignore[arg-type]  # click gives what it takes
        trio.run(_watch, path, wanted, show)
    else:
        token = os.environ.get("CACHECAST_INSPECTOR_TOKEN")
        token = token or click.prompt("Token of the inspector", hide_input=True, err=True)
        trio.run(_watch_from_afar, address, token, wanted, show)


async def _watch(path: Path, wanted: Wanted, show: Callable[[Part], None]) -> None:
    while True:
        async with open_call(path, "watch", wanted) as line:
            await _follow(line, show)
        await trio.sleep(FLUSH_S)  # another process has taken over, and listens by then


async def _follow(line: Line, show: Callable[[Part], None]) -> None:
    """Show what a node sends until it hands the socket to another process."""
    while True:
        reply, _ = await line.receive(Reply)
        if reply.fault:
            raise ControlError(reply.fault)
        try:
            part = msgspec.msgpack.decode(reply.body, type=Part | None)
        except msgspec.DecodeError as error:
            raise ControlError(f"The node's answer cannot be understood: {error}.") from None
        if part is None:
            return
        show(part)


async def _watch_from_afar(
    address: str, token: str, wanted: Wanted, show: Callable[[Part], None]
) -> None:
    base = (address if "://" in address else f"http://{address}").rstrip("/").removesuffix(PATH)
    url = f"{base}{PATH}/api/live?{wanted.query()}"
    headers = {"Authorization": f"Bearer {token}"}
    try:
        async with httpx2.AsyncClient(timeout=SILENT_S) as client:
            while True:
                async with client.stream("GET", url, headers=headers) as answer:
                    await _read_stream(answer, show)
                await trio.sleep(AGAIN_S)  # the node ends, or another process takes over
    except (httpx2.HTTPError, httpx2.InvalidURL, UnicodeError) as error:
        raise ControlError(f"{base} cannot be watched: {error or type(error).__name__}.") from None


async def _read_stream(answer: httpx2.Response, show: Callable[[Part], None]) -> None:
    if answer.status_code != 200:
        await answer.aread()
        raise ControlError(f"{answer.status_code}: {answer.text.strip()[:300]}")
    event = ""
    with suppress(httpx2.RemoteProtocolError):  # it was cut, and is asked for again
        async for line in answer.aiter_lines():
            field, _, value = line.partition(": ")
            if field == "event":
                event = value
            elif field == "data" and event == "console":
                said = msgspec.json.decode(value, type=ConsolePart)
                of = [
                    happening if said.worker is None else replace(happening, worker=said.worker)
                    for happening in said.happenings
                ]
                show(Part(of, said.left_out))


def _show(part: Part, *, is_json: bool) -> None:
    for happening in part.happenings:
        text = msgspec.json.encode(happening).decode() if is_json else _line(happening)
        click.echo(text, file=sys.stdout)
    if part.left_out:
        if is_json:
            click.echo(json.dumps({"left_out": part.left_out}), file=sys.stdout)
        else:
            kinds = ", ".join(f"{kind} {n}" for kind, n in part.left_out.items())
            click.echo(f"             ... not shown: {kinds}", file=sys.stdout)


def _line(said: Happening) -> str:
    """A line of it; nothing that a client wrote moves a cursor or sets a colour."""
    at = datetime.fromtimestamp(said.at).astimezone().strftime("%H:%M:%S.%f")[:-3]
    facts = [
        None if said.worker is None else f"worker {said.worker}",
        said.what,
        said.channel,
        None if said.event is None else f'"{said.event}"',
        None if said.user_id is None else f"user {said.user_id}",
        said.socket_id,
        None if said.n_bytes is None else f"{said.n_bytes} bytes",
        None if said.code is None else str(said.code),
        said.text,
        said.data,
    ]
    text = "  ".join(fact for fact in facts if fact)
    return f"{at} {said.app or '-'} {said.kind:<12} {_plain(text)}"


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
