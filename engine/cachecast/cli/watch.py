"""``cachecast watch``: what happens on a node of this machine, line by line, by its control socket.

It needs no token and no inspector: whoever may use that socket may stop the node, too.
"""

from __future__ import annotations

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec
import trio

from cachecast.broker.feed import KINDS, Happening, Wanted
from cachecast.cli.control import control_options, find_node
from cachecast.control.ask import open_call
from cachecast.control.line import Reply
from cachecast.errors import ControlError

if TYPE_CHECKING:
    from cachecast.broker.feed import Feed
    from cachecast.control.desk import Call, ControlDesk
    from cachecast.control.line import Line

__all__ = ["offer_watching", "watch_command"]

#: Seconds between two looks at what has not been sent, and between two signs of life without any.
FLUSH_S: Final = 0.2
BEAT_S: Final = 1.0

#: Seconds for a watcher to take something before it is let go.
STALL_S: Final = 10.0

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


def offer_watching(feed: Feed | None, desk: ControlDesk) -> None:
    """Have ``watch`` answered at a control socket.

    Queue: :data:`MAX_WATCHERS`, whose watches have bounds of their own; one more is refused.

    Args:
        feed: the feed of the node; None where it is several processes.
        desk: who answers at the socket.
    """
    n_watchers = 0

    async def watch(call: Call) -> object:
        nonlocal n_watchers
        if feed is None:
            raise ControlError("A node with workers cannot be watched as a whole yet.")
        if n_watchers >= MAX_WATCHERS:
            raise ControlError(f"{MAX_WATCHERS} watch already, which is the most: end one of them.")
        watched = feed.watch(call.read(Wanted))
        n_watchers += 1
        try:
            silent_s = BEAT_S
            while not desk.is_stopped:
                part = Part(*watched.take())
                if part.happenings or part.left_out or silent_s >= BEAT_S:
                    silent_s = 0.0
                    await _send(call, part)
                await trio.sleep(FLUSH_S)
                silent_s += FLUSH_S
        finally:
            n_watchers -= 1
            feed.unwatch(watched)
        return None

    desk.add("watch", watch)


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
@control_options
def watch_command(
    channels: tuple[str, ...],
    app: str | None,
    kinds: tuple[str, ...],
    socket_id: str | None,
    user_id: str | None,
    *,
    is_json: bool,
    **options: str | Path | None,
) -> None:
    """Show what happens on a node of this machine, until interrupted.

    Connections, subscriptions, events, API calls, and refusals with their reason; of CHANNELs only
    where some are named, and one that ends with * is a prefix. Under load it shows samples and says
    how many more there were. What was published is not shown, unless the node was started with
    --inspector-shows-payloads.
    """
    wanted = Wanted(frozenset(kinds), app, channels, socket_id, user_id)
    trio.run(_watch, find_node(**options), wanted, is_json)  # type: ignore[arg-type]


async def _watch(path: Path, wanted: Wanted, is_json: bool) -> None:  # noqa: FBT001
    while True:
        async with open_call(path, "watch", wanted) as line:
            await _follow(line, is_json=is_json)
        await trio.sleep(FLUSH_S)  # another process has taken over, and listens by then


async def _follow(line: Line, *, is_json: bool) -> None:
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
        _show(part, is_json=is_json)


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
