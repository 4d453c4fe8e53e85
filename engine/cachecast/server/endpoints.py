"""Pusher's HTTP API: one function for each endpoint, verify -> Broker -> response.

Bodies of errors are plain text ending in a newline, as hosted Pusher's are (protocol.md 6.1);
success is always 200 with JSON, because Python's library parses it and PHP's wants exactly 200;
or with the same in msgpack, for who asks for it.
"""

from __future__ import annotations

from functools import partial
from math import ceil
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import trio

from cachecast.broker.admission import check_request, find_hub, find_secret
from cachecast.broker.views import occupied_channels
from cachecast.bus.receipt import DONE, Receipt
from cachecast.errors import AuthError, BadRequestError, RemoteProtocolError
from cachecast.protocol import auth
from cachecast.protocol.http_api import (
    CHANNEL_INFO,
    USERS_INFO,
    EventRequest,
    Route,
    encode_items,
    encode_members,
    encode_user,
    find_route,
    join_items,
    join_members,
    read_batch,
    read_channel,
    read_channel_info,
    read_event,
    read_plain_event,
)
from cachecast.server.cached import read_value
from cachecast.server.calls import (
    Call,
    error_response,
    in_steps,
    note,
    read,
    refuse,
    respond,
)
from cachecast.server.cors import answer_preflight, is_preflight, share, sharing
from cachecast.server.handshake import find_key, refuse_without_upgrade
from cachecast.server.http_messages import Later, Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from cachecast.broker import Broker, CachedEvent, ChannelState
    from cachecast.channels.hub import Hub
    from cachecast.protocol.channel_name import ChannelName
    from cachecast.server.streaming import Stream

__all__ = ["Elsewhere", "Found_co", "handle"]

T = TypeVar("T")
Found_co = TypeVar("Found_co", covariant=True)

Info = dict[str, int]

_PROBES: Final = frozenset({"/up", "/ready"})

#: Number of occupied channels listed between two checkpoints: a hundred thousand at once take a
#: third of a second, in which nobody else would be served.
CHANNELS_PER_STEP: Final = 500

#: Header that says how many connections a termination has closed; the body is the protocol's, and
#: says nothing.
CLOSED_HEADER: Final = "X-Cachecast-Closed"
#: Number of members listed between two checkpoints: of ids, and with ``user_info``, which may be
#: 1 KB each by default; and of connections of a user that are ended.
USERS_PER_STEP: Final = 2_000
MEMBERS_PER_STEP: Final = 200
CLOSINGS_PER_STEP: Final = 50


class Elsewhere(Protocol[Found_co]):
    """Answers a request whose path is none of the API's, or gives None."""

    def __call__(self, request: Request, /, *, is_tls: bool) -> Found_co | None:
        """The answer, if there is one."""


def handle(
    broker: Broker,
    request: Request,
    *,
    is_tls: bool,
    elsewhere: Elsewhere[Found_co] = lambda _, **__: None,
) -> Response | Later | Stream | Found_co:
    """Answer one request of the HTTP API.

    Args:
        broker: the broker that is served.
        request: the request.
        is_tls: whether it came over TLS.
        elsewhere: function that may answer a request whose path is none of the API's.
    """
    route = find_route(request.path)
    if route is None:
        found = elsewhere(request, is_tls=is_tls)
        return _find_nothing(broker, request) if found is None else found
    origin = request.headers.get(b"origin")
    if origin is None:
        return _handle(broker, route, request, is_tls=is_tls)
    shared = _find_sharing(broker, route, request, origin.decode("latin-1"))
    if shared and is_preflight(request):
        return answer_preflight(shared)
    answer = _handle(broker, route, request, is_tls=is_tls)
    return share(answer, shared) if shared else answer


def _find_sharing(broker: Broker, route: Route, request: Request, origin: str) -> tuple[str, ...]:
    """The headers by which pages of an origin may read answers of the app that a path names."""
    try:
        hub = _find_hub(broker, route, auth.parse_query(request.query))
    except RemoteProtocolError:
        return ()
    return sharing(hub.app.cors_origins, origin)


def _handle(
    broker: Broker, route: Route, request: Request, *, is_tls: bool
) -> Response | Later | Stream:
    hub: Hub | None = None
    try:
        query = auth.parse_query(request.query)
        hub = _find_hub(broker, route, query)
        if request.method != route.method and (request.method, route.method) != ("HEAD", "GET"):
            note(broker, hub, route.name, 405, f"This path takes {route.method}")
            response = error_response(405, f"This path takes {route.method}\n")
            allowed = "GET, HEAD" if route.method == "GET" else route.method
            response.headers = (f"Allow: {allowed}",)
            return response
        # Before the signature: its MD5 is mostly of what the body was before it was compressed.
        coding = request.headers.get(b"content-encoding")
        if coding is not None and request.body and coding.lower() != b"identity":
            note(broker, hub, route.name, 415, "Content-Encoding is not supported")
            return _refuse_coding(hub, coding)
        auth.verify_request(
            request.method,
            request.path,
            query,
            request.body,
            find_secret(hub, broker.clients.find_hub, query.named.get("auth_key")),
            broker.unix_now(),
            tail=route.tail,
        )
        check_request(hub, broker.config.cluster, is_tls=is_tls)
        request.app_id = hub.app.id
        hub.counters.http_requests += 1
        if (tap := broker.feed.tap) is not None:
            tap("api", route.name, hub.app.id, _channel_of(route), text=_words(request))
        return _ENDPOINTS[route.name](Call(broker, hub, request, route, query))
    except RemoteProtocolError as error:
        return refuse(broker, hub, route, error)


def _channel_of(route: Route) -> str | None:
    return route.argument if route.argument and route.name != "terminate" else None


def _words(request: Request) -> str:
    """Method and path, which an operator is shown; the query has a signature in it."""
    return f"{request.method} {request.path[:200]}"


def _find_nothing(broker: Broker, request: Request) -> Response:
    """What to say of a path that is none: most likely a WebSocket client is behind a bad proxy."""
    if request.path in _PROBES and request.method in {"GET", "HEAD"}:
        return _probe(broker, request.path)
    if find_key(request.path) is None and b"sec-websocket-key" not in request.headers:
        note(broker, None, "none", 404, "Path not found")
        return error_response(404, "404 NOT FOUND\n")
    response = refuse_without_upgrade(request)
    note(broker, None, "websocket", response.status, "No usable upgrade")
    broker.clients.refusals[f"http {response.status}"] += 1
    return response


def _probe(broker: Broker, path: str) -> Response:
    """What balancers ask on the port that they serve; reasons are for the operator's address."""
    if path == "/up":
        return Response(200, b'{"health":"OK"}')
    if broker.is_ready:
        return Response(200, b'{"ready":true}')
    return Response(503, b'{"ready":false}')


def _refuse_coding(hub: Hub, coding: bytes) -> Response:
    hub.counters.refusals["http 415"] += 1
    response = error_response(
        415,
        f"Content-Encoding {coding[:64].decode('latin-1')} is not supported: send the body as it "
        "is, without compression\n",
    )
    response.headers = ("Accept-Encoding: identity",)
    return response


def _find_hub(broker: Broker, route: Route, query: auth.Query) -> Hub:
    """The app of a request: by its path, or on the Python library's short path by its key."""
    if route.app_id is not None:
        return find_hub(broker.hubs, route.app_id)
    key = query.named.get("auth_key")
    if key is None:
        raise AuthError("Missing parameter: auth_key")
    hub = broker.clients.find_hub(key)
    if hub is None:
        raise AuthError("Unknown auth_key", http_status=400)
    return hub


# --- publishing


def _publish(
    call: Call,
    requests: list[EventRequest],
    answer: Callable[[], Response],
    ask: Callable[[], Receipt[Response]] | None = None,
) -> Response | Later:
    """Publish now, or answer later if the channels have too much undelivered.

    Args:
        call: the request and who handles it.
        requests: events that it publishes.
        answer: function that gives the answer once they are published.
        ask: function that gives a receipt for the answer instead.
    """
    if call.broker.tracing is not None:
        call.broker.tracing.describe(call.hub.app.id, requests)
    try:
        receipt = call.broker.delivery.publish_nowait(call.hub, requests)
    except trio.WouldBlock:
        return _publish_later(call, requests, answer if ask is None else ask)
    if receipt is DONE:
        return answer() if ask is None else respond(call, ask())
    if ask is not None:
        begin = ask
        return respond(call, receipt.then(lambda _: begin()))

    def attempt() -> Response | None:
        if not receipt.is_done:
            return None
        return answer() if receipt.fault is None else read(call, Receipt.failed(receipt.fault))

    return Later(attempt, receipt.when_done)


def _publish_later(
    call: Call,
    requests: list[EventRequest],
    answer: Callable[[], Response | Receipt[Response]],
) -> Later:
    publish, when_room = call.broker.delivery.publish_later(call.hub, requests)
    answered: Receipt[Response] | None = None

    def attempt() -> Response | None:
        nonlocal answered
        if answered is None and (receipt := publish()) is not None:
            answered = receipt.then(lambda _: answer())
        return read(call, answered) if answered is not None and answered.is_done else None

    def line(action: Callable[[], bool]) -> None:
        def again() -> None:
            if not action():
                line(action)

        (when_room if answered is None else answered.when_done)(again)

    return Later(attempt, line)


def _events(call: Call) -> Response | Later:
    event = read_event(call.request.body, call.query, call.hub.app, is_msgpack=call.is_msgpack)
    if not event.info:
        return _publish(call, [event], call.answer_empty)

    def answer() -> Receipt[Response]:
        def describe(states: list[ChannelState | None]) -> Response:
            infos = [_info(state, event.info) for state in states]
            names = [name.text for name in event.channels]
            return call.answer({"channels": dict(zip(names, infos, strict=True))})

        return _states_behind(call, event.channels).then(describe)

    return _publish(call, [event], call.answer_empty, answer)


def _batch_events(call: Call) -> Response | Later:
    events = read_batch(call.request.body, call.hub.app, is_msgpack=call.is_msgpack)
    if not any(event.info for event in events):
        return _publish(call, events, call.answer_empty)

    def answer() -> Receipt[Response]:
        def describe(states: list[ChannelState | None]) -> Response:
            infos = [_info(state, event.info) for state, event in zip(states, events, strict=True)]
            return call.answer({"batch": infos})

        names = [event.channels[0] for event in events]
        return _states_behind(call, names).then(describe)

    return _publish(call, events, call.answer_empty, answer)


def _plain_event(call: Call) -> Response | Later:
    event = read_plain_event(call.request.body, call.route.argument, call.query, call.hub.app)
    return _publish(call, [event], lambda: call.answer({}, 202))


def _states_behind(call: Call, names: Sequence[ChannelName]) -> Receipt[list[ChannelState | None]]:
    """Of channels behind a publish; None each if the other nodes cannot be asked any more.

    Never a fault: it would say that nothing was published.
    """
    states = call.broker.questions.states(call.hub, names)
    found: Receipt[list[ChannelState | None]] = Receipt()

    def settle() -> None:
        if states.fault is None:
            found.fulfil(list(states.value))
        else:
            call.broker.clients.journal.note(
                "published and not counted",
                app=call.hub.app.id,
                code=None,
                reason=str(states.fault),
            )
            found.fulfil([None] * len(names))

    states.when_done(settle)
    return found


def _info(state: ChannelState | None, wanted: frozenset[str]) -> Info:
    """What a publish asked for; what does not apply, or is not known, is left out (6.3)."""
    found: Info = {}
    if state is None:
        return found
    if "user_count" in wanted and state.user_count is not None:
        found["user_count"] = state.user_count
    if "subscription_count" in wanted:
        found["subscription_count"] = state.subscription_count
    return found


# --- reading


def _channels(call: Call) -> Response | Later:
    prefix = call.query.named.get("filter_by_prefix", "")
    info = read_channel_info(call.query, frozenset({"user_count", "subscription_count"}))
    if "user_count" in info and not prefix.startswith("presence-"):
        raise BadRequestError(
            "user_count may only be requested for presence channels - "
            "please supply filter_by_prefix begining with presence-\n"
        )
    hub = call.hub
    if hub.is_shared:
        states = call.broker.questions.channels(hub, prefix)
        return in_steps(
            call,
            states.then(lambda found: list(found.items())),
            partial(_collect, call, lambda part: _describe(dict(part), info)),
        )
    if len(hub.channels) <= CHANNELS_PER_STEP:
        occupied = occupied_channels(hub.channels.items(), prefix)
        return call.answer({"channels": _describe(occupied, info)})
    return in_steps(
        call,
        Receipt.of(list(hub.channels.items())),
        partial(_collect, call, lambda part: _describe(occupied_channels(part, prefix), info)),
    )


def _collect(
    call: Call, describe: Callable[[list[T]], dict[str, Info]], items: list[T]
) -> Generator[None, None, Response]:
    """The list of channels, in steps."""
    kind = call.answer_type
    parts: list[bytes] = []
    n_found = 0
    for at in range(0, len(items), CHANNELS_PER_STEP):
        found = describe(items[at : at + CHANNELS_PER_STEP])
        n_found += len(found)
        parts.append(encode_members(found, kind))
        yield
    return Response(200, join_members("channels", parts, n_found, kind), kind)


def _describe(states: dict[str, ChannelState], info: frozenset[str]) -> dict[str, Info]:
    found: dict[str, Info] = {}
    for name, state in states.items():
        found[name] = entry = {}
        if "user_count" in info:
            entry["user_count"] = state.user_count or 0
        if "subscription_count" in info:
            entry["subscription_count"] = state.subscription_count
    return found


def _channel(call: Call) -> Response | Later:
    questions, hub, text = call.broker.questions, call.hub, call.route.argument
    name = read_channel(text, hub.app)
    info = read_channel_info(call.query, CHANNEL_INFO)
    if "user_count" in info and not name.is_presence:
        raise BadRequestError(
            "Cannot retrieve the user count unless the channel is a presence channel\n"
        )
    if "cache" in info and not name.is_cache:
        raise BadRequestError("Cannot retrieve the cache unless the channel is a cache channel\n")

    def describe(state: ChannelState) -> Response | Receipt[Response]:
        body: dict[str, Any] = {"occupied": state.occupied}
        if "user_count" in info:
            body["user_count"] = state.user_count
        if "subscription_count" in info:
            body["subscription_count"] = state.subscription_count
        if "cache" not in info:
            return call.answer(body)

        def add_value(event: CachedEvent | None) -> Response:
            if event is None:
                return call.answer(body | {"cache": None})
            response = call.answer(
                body | {"cache": {"data": event.data, "ttl": ceil(event.ttl_s)}}
            )
            response.deadline = call.broker.clock() + event.ttl_s
            return response

        return questions.cached(hub, text).then(add_value)

    return respond(call, questions.channel(hub, text).then(describe))


def _users(call: Call) -> Response | Later:
    questions, hub, channel = call.broker.questions, call.hub, call.route.argument
    if "user_info" not in read_channel_info(call.query, USERS_INFO):
        ids = questions.users(hub, channel)
        return _list_users(call, ids, USERS_PER_STEP, lambda user_id: {"id": user_id})
    describe = partial(encode_user, kind=call.answer_type)
    return _list_users(call, questions.members(hub, channel), MEMBERS_PER_STEP, describe)


def _list_users(
    call: Call, users: Receipt[Sequence[T]], per_step: int, describe: Callable[[T], object]
) -> Response | Later:
    if users.is_done and users.fault is None and len(users.value) <= per_step:
        return call.answer({"users": [describe(user) for user in users.value]})
    kind = call.answer_type

    def collect(users: Sequence[T]) -> Generator[None, None, Response]:
        parts: list[bytes] = []
        for at in range(0, len(users), per_step):
            step = [describe(user) for user in users[at : at + per_step]]
            parts.append(encode_items(step, kind))
            yield
        return Response(200, join_items("users", parts, len(users), kind), kind)

    return in_steps(call, users, collect)


def _stats(call: Call) -> Response | Later:
    """Deprecated, still documented (6.9)."""

    def describe(state: ChannelState) -> Response:
        body = {"occupied": state.occupied, "connection_count": state.subscription_count}
        if state.user_count is not None:
            body["user_count"] = state.user_count
        return call.answer(body)

    return respond(
        call, call.broker.questions.channel(call.hub, call.route.argument).then(describe)
    )


# --- users


def _terminate(call: Call) -> Response | Later:
    clients, hub, user_id = call.broker.clients, call.hub, call.route.argument

    def answer(n_closed: int) -> Response:
        return call.answer({}, 200, f"{CLOSED_HEADER}: {n_closed}")

    if hub.is_shared:
        return respond(call, call.broker.end_user(hub, user_id).then(answer))
    left = len(hub.users.connections_of(user_id))
    if left <= CLOSINGS_PER_STEP:
        return answer(clients.terminate(hub, user_id))

    def terminate_all(left: int) -> Generator[None, None, Response]:
        """Those who are signed in now; whoever comes back meanwhile is another matter."""
        n_closed = 0
        for _ in range(0, left, CLOSINGS_PER_STEP):
            n_closed += clients.terminate(hub, user_id, CLOSINGS_PER_STEP)
            yield
        return answer(n_closed)

    return in_steps(call, Receipt.of(left), terminate_all)


_ENDPOINTS: Final[dict[str, Callable[[Call], Response | Later | Stream]]] = {
    "events": _events,
    "batch_events": _batch_events,
    "plain_event": _plain_event,
    "channels": _channels,
    "channel": _channel,
    "users": _users,
    "stats": _stats,
    "cache": read_value,
    "terminate": _terminate,
}
