"""One stream: what it sends, when it is silent, and that it ends once."""

from __future__ import annotations

import json

import trio

from cachecast.broker.feed import MAX_WATCHES, Feed, Wanted
from cachecast.server.console import COMMENT_S, Console, server_sent


class Tape:
    """A body that notes what it is given."""

    def __init__(self):
        self.parts, self.has_room, self.is_ended = [], True, False

    def write(self, part):
        if not self.has_room:
            raise trio.WouldBlock
        self.parts.append(part)

    def end(self):
        self.is_ended = True


def make(wanted=Wanted()):  # noqa: B008 - it is frozen
    feed, consoles, body = Feed(lambda: 0.0, lambda: 7.0), set(), Tape()
    console = Console(feed, wanted, consoles, b"first")
    console.begin(body)
    return feed, consoles, body, console


def test_what_happens_waits_while_there_is_no_room():
    feed, consoles, body, console = make()
    assert body.parts == [b"first"]
    assert consoles == {console}
    body.has_room = False
    feed.tap("event", "published", "1", "line\nend\r\n\n")
    console.flush(1.0)
    console.say(b"figures")
    body.has_room = True
    console.flush(1.0)
    [_, part] = body.parts
    head, data, _, _ = part.split(b"\n")
    assert head == b"event: console"
    [said] = json.loads(data.removeprefix(b"data: "))["happenings"]
    assert said["channel"] == "line\nend\r\n\n"


def test_silence_is_broken_by_a_comment_now_and_then():
    _, _, body, console = make()
    console.flush(COMMENT_S)
    console.flush(2 * COMMENT_S - 1)
    console.flush(2 * COMMENT_S)
    assert body.parts[1:] == [b":\n\n", b":\n\n"]


def test_it_ends_from_both_sides_and_once():
    for end in (Console.end, Console.on_gone):
        feed, consoles, body, console = make()
        end(console)
        end(console)
        assert feed.tap is None
        assert consoles == set()
        console.flush(99.0)
        console.say(b"late")
        assert body.parts == [b"first"]
        assert body.is_ended is (end is Console.end)


def test_one_that_asks_for_figures_watches_nothing():
    feed, _, body, console = make(None)
    assert feed.tap is None
    console.say(server_sent("figures", [1]))
    assert body.parts[1:] == [b"event: figures\ndata: [1]\n\n"]


def test_one_too_many_ends_at_once():
    feed, consoles, body = Feed(lambda: 0.0, lambda: 7.0), set(), Tape()
    for _ in range(MAX_WATCHES):
        feed.watch(Wanted())
    Console(feed, Wanted(), consoles, b"first").begin(body)
    assert body.is_ended
    assert consoles == set()
