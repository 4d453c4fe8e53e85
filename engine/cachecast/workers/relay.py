"""The inspector of a node with workers: the door is the parent's, and a worker answers behind it.

Each worker is a whole node with an inspector of its own, at no address: the parent makes a pair of
sockets and hands it one of them (``Post.connect``). Which worker is meant says ``?worker=N``, and
the answer says which it was; without it all are asked, and :mod:`.merges` makes one answer of it.
"""

from __future__ import annotations

import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, NoReturn
from urllib.parse import parse_qs

import msgspec
import trio

from cachecast.broker.feed import Watch
from cachecast.errors import BadRequestError, CapacityError
from cachecast.server.access import PATH
from cachecast.server.console import ConsolePart
from cachecast.server.entrance import ACTIONS, HEADERS, Entrance, json_response
from cachecast.server.figures import FIELDS
from cachecast.server.http_messages import Later, Response, text_response
from cachecast.server.streaming import Stream
from cachecast.workers.merges import merge, merge_rows

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import AsyncIterator, Callable, Sequence

    from cachecast.broker.feed import Wanted
    from cachecast.server.entrance import InspectorTerms
    from cachecast.server.http_messages import Request
    from cachecast.server.streaming import Body
    from cachecast.workers.post import Post

__all__ = ["Relay", "watch_workers"]

#: Seconds for a worker to answer, or to begin to.
ANSWER_LIMIT_S: Final = 10.0

#: Bytes of an answer at most: a page of a list with the longest names.
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024

#: Bytes of the head of an answer at most.
MAX_HEAD_BYTES: Final = 16 * 1024

#: Number of pages that are open at a time.
MAX_PAGES: Final = 16

#: Number of requests that are under way to workers; one more is refused.
MAX_UNDER_WAY: Final = 64

#: Seconds until a worker that was watched and has gone is looked for again.
AGAIN_S: Final = 1.0

_RECEIVE_BYTES: Final = 64 * 1024

#: How events of a worker's stream begin.
_FIGURES: Final = b"event: figures\ndata: "
_CONSOLE: Final = b"event: console\ndata: "


class Relay(Entrance):
    """Hands requests on to workers; :meth:`run` is its task, and owns those of requests.

    Queue: :data:`MAX_UNDER_WAY` requests and streams, at most :data:`MAX_PAGES` of them streams;
    one more is answered with 503.

    Attributes:
        n_pages: number of pages that are open.
    """

    def __init__(
        self, terms: InspectorTerms, posts: Sequence[Post], refusals: Counter[str]
    ) -> None:
        """Make it; ``posts`` are those of all workers."""
        super().__init__(terms, trio.current_time, time.time, refusals)
        self.n_workers = len(posts)
        self._posts = posts
        self._nursery: trio.Nursery | None = None
        self._n_under_way = 0
        self.n_pages = 0

    async def run(self) -> NoReturn:
        """Hand on for ever."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()
        raise AssertionError("it does not end")

    def _act(  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        self, name: str, request: Request
    ) -> Response | Later:
        posts = self._find(request)
        if name == "publish":  # once: all nodes of a cluster hear of it
            posts = [next((post for post in posts if post.is_ready), posts[0])]
        return self._hand_on(name, posts, request)

    def _read(  # type: ignore[explicit-override]  # as above
        self, name: str, request: Request
    ) -> Response | Later | Stream:
        if name == "live":
            if self.n_pages >= MAX_PAGES:
                raise CapacityError(
                    f"{MAX_PAGES} pages are open on this node, which is the most: close one",
                    http_status=503,
                )
            return Stream(_Relayed(self, self._find(request), request), "text/event-stream")
        return self._hand_on(name, self._find(request), request)

    def _find(self, request: Request) -> list[Post]:
        """The workers that are asked."""
        try:
            wanted = parse_qs(request.query, max_num_fields=64).get("worker", [""])[-1]
        except ValueError:
            raise BadRequestError("Too many fields in the query") from None
        posts = [post for post in self._posts if wanted in {"", str(post.number)}]
        if not posts:
            raise BadRequestError(
                f"There is no such worker; there are 1 to {len(self._posts)}", http_status=404
            )
        if self._n_under_way >= MAX_UNDER_WAY:
            raise CapacityError("Too many requests are under way: try again", http_status=503)
        return posts

    def _hand_on(self, name: str, posts: Sequence[Post], request: Request) -> Later:
        answers: list[Response] = []
        waiting: list[Callable[[], bool]] = []

        async def ask() -> None:
            found: dict[int, Response] = {}

            async def ask_one(post: Post) -> None:
                found[post.number] = await self._ask(post, request)

            async with trio.open_nursery() as nursery:
                for post in posts:
                    nursery.start_soon(ask_one, post)
            answers.append(_merge(name, dict(sorted(found.items()))))
            for action in waiting:
                action()

        def line(action: Callable[[], bool]) -> None:
            if answers:
                action()
            else:
                waiting.append(action)

        self.start(ask)
        return Later(lambda: answers[0] if answers else None, line)

    def start(self, function: Callable[[], object]) -> None:
        """Run something in the task of this object, counted among what is under way."""

        async def run() -> None:
            self._n_under_way += 1
            try:
                await function()  # type: ignore[misc]  # it is a coroutine's
            finally:
                self._n_under_way -= 1

        assert self._nursery is not None
        self._nursery.start_soon(run)

    async def _ask(self, post: Post, request: Request) -> Response:
        data = bytearray()
        with suppress(OSError, trio.BrokenResourceError), trio.move_on_after(ANSWER_LIMIT_S):
            async with await self.connect(post, request) as stream:
                while part := await stream.receive_some(_RECEIVE_BYTES):
                    data += part
                    if len(data) > MAX_ANSWER_BYTES:
                        break
                else:
                    return _response_of(bytes(data), post.number)
        return _headed(text_response(503, f"Worker {post.number} does not answer: try again"))

    async def connect(self, post: Post, request: Request) -> trio.SocketStream:
        """A connection to a worker on which the request has been sent; see :func:`_connect`."""
        target = f"{request.path}?{request.query}"
        return await _connect(post, request.method, target, request.body)


class _Relayed:
    """The source of one stream: what workers send, as fast as the client takes it."""

    def __init__(self, relay: Relay, posts: Sequence[Post], request: Request) -> None:
        self._relay = relay
        self._posts = posts
        self._request = request
        self._life = trio.CancelScope()
        self._has_room = trio.Event()
        self._body: Body | None = None
        self._rows: dict[int, list[float]] = {}

    def begin(self, body: Body) -> None:
        """See :class:`~cachecast.server.streaming.Source`, as for all three."""
        self._body = body
        self._relay.start(self._run)

    def on_room(self) -> None:
        """Read on."""
        self._has_room.set()

    def on_gone(self) -> None:
        """End the workers' streams, too."""
        self._life.cancel()

    async def _run(self) -> None:
        body = self._body
        assert body is not None
        self._relay.n_pages += 1
        try:
            with self._life:
                async with trio.open_nursery() as nursery:
                    for post in self._posts:
                        nursery.start_soon(self._copy, post, body)
        finally:
            self._relay.n_pages -= 1

    async def _copy(self, post: Post, body: Body) -> NoReturn:
        while True:
            with suppress(OSError, trio.BrokenResourceError):
                async with await self._relay.connect(post, self._request) as stream:
                    events = _Events(stream)
                    while (event := await events.next()) is not None:
                        await self._pass_on(post.number, event, body)
            self._rows.pop(post.number, None)
            await trio.sleep(AGAIN_S)  # it is started again

    async def _pass_on(self, number: int, event: bytes, body: Body) -> None:
        if len(self._posts) > 1 and event.startswith(_FIGURES):
            self._rows[number] = msgspec.json.decode(event[len(_FIGURES) :])
            if number != min(self._rows):
                return
            event = _FIGURES + msgspec.json.encode(merge_rows(FIELDS, [*self._rows.values()]))
        elif event.startswith(_CONSOLE):
            event = b'%b{"worker":%d,%b' % (_CONSOLE, number, event[len(_CONSOLE) + 1 :])
        while not body.has_room:
            self._has_room = trio.Event()
            await self._has_room.wait()
        body.write(event + b"\n\n")


@asynccontextmanager
async def watch_workers(posts: Sequence[Post], wanted: Wanted) -> AsyncIterator[Watch]:
    """What happens on all workers, within a block; one that is started again is watched again.

    Args:
        posts: those of all workers, which must have an inspector.
        wanted: what is watched for; each worker samples by itself.
    """
    watch = Watch(wanted)
    async with trio.open_nursery() as nursery:
        for post in posts:
            nursery.start_soon(_follow, post, wanted, watch)
        yield watch
        nursery.cancel_scope.cancel()


async def _follow(post: Post, wanted: Wanted, watch: Watch) -> NoReturn:
    target = f"{PATH}/api/live?{wanted.query()}"
    while True:
        with suppress(OSError, trio.BrokenResourceError):
            async with await _connect(post, "GET", target) as stream:
                events = _Events(stream)
                while (event := await events.next()) is not None:
                    if event.startswith(_CONSOLE):
                        part = msgspec.json.decode(event[len(_CONSOLE) :], type=ConsolePart)
                        for said in part.happenings:
                            watch.put(msgspec.structs.replace(said, worker=post.number))
                        watch.leave_out(part.left_out)
        await trio.sleep(AGAIN_S)


async def _connect(post: Post, method: str, target: str, body: bytes = b"") -> trio.SocketStream:
    """A connection to a worker on which a request has been sent.

    Raises:
        OSError: it takes none.
        trio.BrokenResourceError: it has gone.
    """
    sock, terms = post.connect(), post.inspector
    sock.setblocking(False)  # noqa: FBT003 - its only argument
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    # Of version 1.0: then the body is neither chunked nor followed by anything.
    head = (
        f"{method} {target} HTTP/1.0\r\nHost: localhost\r\n"
        f"Authorization: Bearer {'' if terms is None else terms.token}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    try:
        await stream.send_all(head.encode("latin-1") + body)
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


class _Events:
    """Events of a worker's stream, one after the other."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._rest: bytes | None = b""
        self._has_begun = False

    async def next(self) -> bytes | None:
        """The next one; None at the end, which is at once where the request was refused."""
        if not self._has_begun:
            self._rest = await _read_head(self._stream)
            self._has_begun = True
        while self._rest is not None and len(self._rest) <= MAX_ANSWER_BYTES:
            event, found, rest = self._rest.partition(b"\n\n")
            if found:
                self._rest = rest
                return event
            part = await self._stream.receive_some(_RECEIVE_BYTES)
            self._rest = self._rest + part if part else None
        return None


async def _read_head(stream: trio.SocketStream) -> bytes | None:
    """What came behind the head of a worker's answer; None where there is no stream."""
    head = b""
    while b"\r\n\r\n" not in head:
        part = await stream.receive_some(_RECEIVE_BYTES)
        if not part or len(head) > MAX_HEAD_BYTES:
            return None
        head += part
    first, _, rest = head.partition(b"\r\n\r\n")
    return rest if first.split(b" ", 2)[1] == b"200" else None


def _merge(name: str, answers: dict[int, Response]) -> Response:
    """One answer of all who were asked."""
    good = {number: answer for number, answer in answers.items() if answer.status == 200}
    if len(answers) == 1 or not good:
        return next(iter(answers.values()))
    if name in ACTIONS:  # of a connection one knows, or of a user, whom all end
        return next(iter(good.values()))
    parts = {number: msgspec.json.decode(answer.body) for number, answer in good.items()}
    return _headed(json_response(merge(name, parts)))


def _response_of(data: bytes, number: int) -> Response:
    """A worker's answer, which is of this release, and says so."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    named = {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}
    try:
        status = int(first.split(" ", 2)[1])
    except (IndexError, ValueError):
        return _headed(text_response(503, f"Worker {number} does not answer: try again"))
    response = Response(status, body, named.get("content-type", "text/plain"))
    response.headers = (f"X-Cachecast-Worker: {number}",)
    return _headed(response)


def _headed(response: Response) -> Response:
    response.headers += HEADERS
    return response
