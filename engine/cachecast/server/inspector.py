"""The inspector on the admin address: what happens on a node, for people who were let in.

What lies under ``/inspector/api``: JSON, one stream of server-sent events, and two actions. Who may
ask has been said before, by :mod:`.entrance`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar
from urllib.parse import parse_qs

import msgspec
import structlog
import trio

from cachecast.broker.feed import KINDS, Wanted
from cachecast.bus.receipt import Receipt
from cachecast.errors import (
    BadRequestError,
    BusError,
    CapacityError,
    RemoteProtocolError,
)
from cachecast.metrics import package_version
from cachecast.server.access import PATH
from cachecast.server.console import Console, server_sent
from cachecast.server.entrance import (
    HEADERS,
    Entrance,
    InspectorTerms,
    json_response,
    refusal,
)
from cachecast.server.figures import FIELDS, FINE_S, Figures
from cachecast.server.http_messages import Later, Response, text_response
from cachecast.server.listings import LISTINGS, Query, list_members
from cachecast.server.streaming import Stream

if TYPE_CHECKING:
    from collections.abc import Generator

    from cachecast.broker import Broker
    from cachecast.channels.hub import Hub
    from cachecast.server.http_messages import Request
    from cachecast.server.listings import Key, Steps

__all__ = ["Inspector", "InspectorTerms"]

#: Seconds between two looks at what the open pages have not been sent.
FLUSH_S: Final = 0.2

#: Number of pages that are open at a time. A parent lets fewer in, and four watch by its socket.
MAX_CONSOLES: Final = 20

#: Number of items of a page of a list, and of apps that are named with their figures.
MAX_LIMIT: Final = 200
MAX_APPS: Final = 200

#: Number of a user's connections that are closed between two checkpoints.
CLOSINGS_PER_STEP: Final = 50

_log = structlog.get_logger("cachecast.inspector")

T = TypeVar("T")


class Publish(msgspec.Struct, frozen=True):
    """A test event; ``confirm`` is the channel's name once more."""

    app: str
    channel: str
    event: str
    data: Any
    confirm: str


class Disconnect(msgspec.Struct, frozen=True):
    """A connection or all of a user; ``confirm`` is its id once more."""

    app: str
    confirm: str
    socket_id: str | None = None
    user_id: str | None = None


class Inspector(Entrance):
    """Answers those who look into one node; :meth:`run` is its task.

    Queue: :data:`MAX_CONSOLES` open pages; one more is answered with 503.
    """

    def __init__(self, broker: Broker, terms: InspectorTerms) -> None:
        """Make it; nothing is looked at before :meth:`run`."""
        super().__init__(terms, broker.clock, broker.unix_now, broker.clients.refusals)
        self._broker = broker
        self._figures = Figures(broker)
        self._consoles: set[Console] = set()
        self._has_console = trio.Event()
        broker.feed.shows_payloads = terms.shows_payloads

    # --- its task

    async def run(self) -> NoReturn:
        """Take the figures, and send pages what happens, for ever."""
        async with trio.open_nursery() as nursery:
            if self.terms.keeps_figures:
                nursery.start_soon(self._run_figures)
            nursery.start_soon(self._run_consoles)
        raise AssertionError("neither ends")

    async def _run_figures(self) -> NoReturn:
        while True:
            row = await self._figures.sample()
            if self._consoles:
                part = server_sent("figures", row)
                for console in tuple(self._consoles):
                    console.say(part)
            await trio.sleep(FINE_S)

    async def _run_consoles(self) -> NoReturn:
        while True:
            if not self._consoles:
                self._has_console = trio.Event()
                await self._has_console.wait()
            await trio.sleep(FLUSH_S)
            now, is_draining = self._broker.clock(), self._broker.clients.is_draining
            for console in tuple(self._consoles):
                console.flush(now)
                if is_draining:  # else the end would wait for them
                    console.end()

    # --- answering

    def _act(  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        self, name: str, request: Request
    ) -> Response | Later:
        return self._publish(request) if name == "publish" else self._disconnect(request)

    def _read(  # type: ignore[explicit-override]  # as above
        self, name: str, request: Request
    ) -> Response | Later | Stream:
        asked = _Asked(request.query)
        if name == "overview":
            return json_response(self._overview())
        if name == "live":
            return self._live(asked)
        hub = self._hub(asked)
        if name == "webhooks":
            urls = self._broker.webhooks.states(hub.app.id)
            return json_response({"urls": urls, "events": dict(hub.counters.webhooks)})
        if name == "members":
            return self._steps(list_members(hub, asked.text("channel"), asked.query()))
        listing = LISTINGS.get(name)
        if listing is None:
            raise BadRequestError("404 NOT FOUND", http_status=404)
        return self._steps(listing(self._broker, hub, asked.query()))

    def _hub(self, asked: _Asked) -> Hub:
        """The app that is asked about; the first where none is named."""
        hubs = self._broker.hubs
        app_id = asked.text("app")
        hub = hubs.get(app_id) if app_id else next(iter(hubs.values()), None)
        if hub is None:
            raise BadRequestError(f"No app {app_id[:64]!r} is served here", http_status=404)
        return hub

    def _overview(self) -> dict[str, Any]:
        broker = self._broker
        return {
            "version": package_version(),
            "is_draining": broker.clients.is_draining,
            "outage": broker.outage.reason,
            "fields": FIELDS,
            "fine": list(self._figures.fine),
            "coarse": list(self._figures.coarse),
            "apps": [self._app(hub) for hub in list(broker.hubs.values())[:MAX_APPS]],
            "refusals": dict(broker.clients.refusals),
            "engines": broker.questions.engines(),
        }

    def _app(self, hub: Hub) -> dict[str, Any]:
        cache, counters = self._broker.cache, hub.counters
        n_connections = len(hub.connections)
        everywhere = None  # of all nodes, where there are others
        if hub.is_shared:
            everywhere = hub.sum_connections(n_connections - len(hub.unauthorized))
        return {
            "id": hub.app.id,
            "connections": n_connections,
            "connections_everywhere": everywhere,
            "users": len(hub.users),
            "cache_entries": cache.n_entries(hub.app.id),
            "cache_bytes": cache.n_bytes(hub.app.id),
            "cache_hits": counters.cache_hits,
            "cache_misses": counters.cache_misses,
            "refusals": dict(counters.refusals),
        }

    def _live(self, asked: _Asked) -> Stream:
        if len(self._consoles) >= MAX_CONSOLES:
            raise CapacityError(
                f"{MAX_CONSOLES} pages are open on this node, which is the most: close one",
                http_status=503,
            )
        wanted = None
        if asked.text("console") != "0":
            kinds = frozenset(asked.texts("kind"))
            if not kinds <= frozenset(KINDS):
                raise BadRequestError(f"kind must be among: {', '.join(KINDS)}")
            wanted = Wanted(
                kinds,
                asked.text("app") or None,
                tuple(asked.texts("channel")),
                asked.text("socket") or None,
                asked.text("user") or None,
            )
        first = b"retry: 2000\n\n"
        if self._figures.fine:
            first += server_sent("figures", self._figures.fine[-1])
        self._has_console.set()
        return Stream(
            Console(self._broker.feed, wanted, self._consoles, first), "text/event-stream"
        )

    def _steps(self, work: Steps) -> Later:
        """Answer with what takes many steps, in turns with those of all apps."""

        def step() -> Response | None:
            try:
                next(work)
            except StopIteration as end:
                return _with_headers(json_response(end.value))
            return None

        return Later(step, partial(self._broker.stepper.add, PATH))

    # --- actions

    def _publish(self, request: Request) -> Response | Later:
        asked = _decode(request, Publish)
        _confirm(asked.confirm, asked.channel)
        try:
            receipt = self._broker.publish_nowait(asked.app, asked.channel, asked.event, asked.data)
        except trio.WouldBlock:
            raise CapacityError(
                "Too much is undelivered there: try again", http_status=503
            ) from None
        _log.info("inspector published", app=asked.app, channel=asked.channel[:200])
        return self._receipt(receipt.then(lambda _: json_response({"published": True})))

    def _disconnect(self, request: Request) -> Response | Later:
        asked = _decode(request, Disconnect)
        hub = self._broker.hub(asked.app)
        if asked.user_id is not None and asked.socket_id is None:
            _confirm(asked.confirm, asked.user_id)
            _log.info("inspector disconnects a user", app=asked.app)
            return self._end_user(hub, asked.user_id)
        if asked.socket_id is None or asked.user_id is not None:
            raise BadRequestError("Give either socket_id or user_id")
        _confirm(asked.confirm, asked.socket_id)
        connection = hub.connections.get(asked.socket_id)
        if connection is None:
            raise BadRequestError("No such connection is open here", http_status=404)
        _log.info("inspector disconnects", app=asked.app, socket_id=asked.socket_id)
        self._broker.clients.disconnect(connection, 4009, "You got disconnected by the app.")
        return json_response({"closed": 1})

    def _end_user(self, hub: Hub, user_id: str) -> Response | Later:
        if hub.is_shared:
            ended = self._broker.end_user(hub, user_id)
            return self._receipt(ended.then(lambda n: json_response({"closed": n})))
        return self._steps(self._close_all(hub, user_id))

    def _close_all(self, hub: Hub, user_id: str) -> Generator[None, None, dict[str, Any]]:
        """Those who are signed in now; whoever comes back meanwhile is another matter."""
        n_closed = 0
        for _ in range(0, len(hub.users.connections_of(user_id)), CLOSINGS_PER_STEP):
            n_closed += self._broker.clients.terminate(hub, user_id, CLOSINGS_PER_STEP)
            yield
        return {"closed": n_closed}

    def _receipt(self, receipt: Receipt[Response]) -> Later | Response:
        """Answer with what the nodes have to agree on, when they do."""

        def read() -> Response:
            try:
                return receipt.value
            except RemoteProtocolError as error:
                return refusal(error)
            except BusError as error:
                return text_response(503, str(error))

        if receipt.is_done:
            return read()
        return Later(lambda: _with_headers(read()) if receipt.is_done else None, receipt.when_done)


class _Asked:
    """The query of a request."""

    def __init__(self, text: str) -> None:
        try:
            self._values = parse_qs(text, max_num_fields=64)
        except ValueError:
            raise BadRequestError("Too many fields in the query") from None

    def text(self, name: str) -> str:
        return self._values.get(name, [""])[-1]

    def texts(self, name: str) -> list[str]:
        return self._values.get(name, [])

    def query(self) -> Query:
        limit = self.text("limit") or "50"
        is_number = limit.isascii() and limit.isdigit() and len(limit) < 10
        if not is_number or not 1 <= int(limit) <= MAX_LIMIT:
            raise BadRequestError(f"limit must be a number from 1 to {MAX_LIMIT}")
        return Query(self.text("search"), self.text("sort"), self._after(), int(limit))

    def _after(self) -> Key | None:
        text = self.text("after")
        if not text:
            return None
        try:
            return msgspec.json.decode(text, type=tuple[float, str])
        except msgspec.DecodeError:
            raise BadRequestError("after must be what the last page called next") from None


def _decode(request: Request, kind: type[T]) -> T:
    """The body of an action; no form can send its content type."""
    content_type = request.headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise BadRequestError("Content-Type must be application/json", http_status=415)
    try:
        return msgspec.json.decode(request.body, type=kind)
    except (ValueError, RecursionError) as error:  # ValueError: also of what is no UTF-8
        raise BadRequestError(f"The body cannot be understood: {error}") from None


def _confirm(given: str, wanted: str) -> None:
    if given != wanted:
        raise BadRequestError("confirm must be the name or id that is meant, once more")


def _with_headers(response: Response) -> Response:
    response.headers += HEADERS
    return response
