"""Pusher's HTTP API: one function for each endpoint, verify -> Broker -> response.

Bodies of errors are plain text ending in a newline, as hosted Pusher's are (protocol.md 6.1);
success is always 200 with JSON, because Python's library parses it and PHP's wants exactly 200.
"""

from __future__ import annotations

from hashlib import blake2b
from math import ceil
from typing import TYPE_CHECKING, Any, Final

import trio

from cachecast.broker.admission import is_foreign
from cachecast.broker.views import occupied_channels
from cachecast.errors import AuthError, BadRequestError, RefusedError, RemoteProtocolError
from cachecast.protocol import auth
from cachecast.protocol.frames import payload_of
from cachecast.protocol.http_api import (
    CHANNEL_INFO,
    EventRequest,
    Route,
    encode_body,
    find_route,
    read_batch,
    read_channel,
    read_channel_info,
    read_event,
    read_plain_event,
)
from cachecast.server.http_messages import Deferred, Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cachecast.broker import Broker
    from cachecast.channels.channel import Channel
    from cachecast.channels.hub import Hub

__all__ = ["handle"]

Params = list[tuple[str, str]]
Info = dict[str, int]

_EMPTY: Final = Response(200, b"{}")

_MSGPACK_TYPES: Final = frozenset({b"application/msgpack", b"application/x-msgpack"})
#: Occupied channels listed between two checkpoints: a hundred thousand at once take a third of a
#: second, in which nobody else would be served.
CHANNELS_PER_STEP: Final = 500

#: The same of members, and of connections of a user that are ended.
USERS_PER_STEP: Final = 2_000
CLOSINGS_PER_STEP: Final = 50


class _Call:
    """A verified request on its way to its endpoint."""

    __slots__ = ("broker", "hub", "params", "request", "route")

    def __init__(
        self, broker: Broker, hub: Hub, request: Request, route: Route, params: Params
    ) -> None:
        self.broker = broker
        self.hub = hub
        self.request = request
        self.route = route
        self.params = params

    @property
    def is_msgpack(self) -> bool:
        kind = self.request.headers.get(b"content-type")
        if kind is None or kind == b"application/json":
            return False
        return kind.partition(b";")[0].strip().lower() in _MSGPACK_TYPES


def handle(broker: Broker, request: Request, *, is_tls: bool) -> Response | Deferred:
    """Answer one request of the HTTP API, which came over TLS or did not."""
    route = find_route(request.path)
    if route is None:
        return _error(404, "404 NOT FOUND\n")
    hub: Hub | None = None
    try:
        params = auth.parse_query(request.query)
        hub = _find_hub(broker, route, params)
        if request.method != route.method:
            response = _error(405, f"This path takes {route.method}\n")
            response.headers = (f"Allow: {route.method}",)
            return response
        _verify(broker, hub, request, params, is_tls=is_tls)
        request.app_id = hub.app.id
        hub.counters.http_requests += 1
        return _ENDPOINTS[route.name](_Call(broker, hub, request, route, params))
    except RemoteProtocolError as error:
        return _refuse(broker, hub, error)


def _refuse(broker: Broker, hub: Hub | None, error: RemoteProtocolError) -> Response:
    refusals = hub.counters.refusals if hub is not None else broker.clients.refusals
    refusals[f"http {error.http_status}"] += 1
    return _error(error.http_status, error.message.rstrip("\n") + "\n")


def _error(status: int, text: str) -> Response:
    return Response(status, text.encode("utf-8", "replace"), "text/plain; charset=utf-8")


def _find_hub(broker: Broker, route: Route, params: Params) -> Hub:
    """The app of a request: by its path, or on the Python library's short path by its key."""
    if route.app_id is not None:
        hub = broker.hubs.get(route.app_id)
        if hub is None:
            raise BadRequestError(f"Unknown app {route.app_id[:64]!r}\n", http_status=404)
        return hub
    key = dict(params).get("auth_key")
    if key is None:
        raise AuthError("Missing parameter: auth_key")
    hub = broker.clients.find_hub(key)
    if hub is None:
        raise AuthError("Unknown auth_key", http_status=400)
    return hub


def _verify(broker: Broker, hub: Hub, request: Request, params: Params, *, is_tls: bool) -> None:
    """Who asks, and whether the app may be served here at all."""
    key = dict(params).get("auth_key")
    if key is None:
        raise AuthError("Missing parameter: auth_key")
    secret = hub.app.secret_of(key)
    if secret is None:
        is_known = broker.clients.find_hub(key) is not None
        raise AuthError(
            "Not authorized for that app" if is_known else "Unknown auth_key", http_status=400
        )
    auth.verify_request(
        request.method, request.path, params, request.body, secret, broker.unix_now()
    )
    if hub.app.is_tls_only and not is_tls:
        raise RefusedError(
            "Application only accepts SSL connections, use https://", http_status=403
        )
    if is_foreign(hub.app, broker.config.cluster):
        raise RefusedError(
            f"App {hub.app.id} not in this cluster. Did you forget to specify the cluster?",
            http_status=403,
        )
    if not hub.app.is_enabled:
        raise RefusedError("Application disabled", http_status=403)


# --- publishing


def _publish(
    call: _Call, requests: list[EventRequest], answer: Callable[[], Response]
) -> Response | Deferred:
    """Publish now, or answer later if the channels have too much undelivered."""
    delivery, hub = call.broker.delivery, call.hub
    try:
        delivery.publish_nowait(hub, requests)
    except trio.WouldBlock:

        async def publish_later() -> Response:
            try:
                await delivery.publish(hub, requests)
            except RemoteProtocolError as error:
                return _refuse(call.broker, hub, error)
            return answer()

        return Deferred(publish_later)
    return answer()


def _events(call: _Call) -> Response | Deferred:
    event = read_event(call.request.body, call.params, call.hub.app, is_msgpack=call.is_msgpack)
    if not event.info:
        return _publish(call, [event], lambda: _EMPTY)

    def answer() -> Response:
        channels = {name.text: _info(call, name.text, event.info) for name in event.channels}
        return Response(200, encode_body({"channels": channels}))

    return _publish(call, [event], answer)


def _batch_events(call: _Call) -> Response | Deferred:
    events = read_batch(call.request.body, call.hub.app, is_msgpack=call.is_msgpack)

    def answer() -> Response:
        if not any(event.info for event in events):
            return _EMPTY
        batch = [_info(call, event.channels[0].text, event.info) for event in events]
        return Response(200, encode_body({"batch": batch}))

    return _publish(call, events, answer)


def _plain_event(call: _Call) -> Response | Deferred:
    event = read_plain_event(call.request.body, call.route.argument, call.params, call.hub.app)
    return _publish(call, [event], lambda: Response(202, b"{}"))


def _info(call: _Call, channel: str, wanted: frozenset[str]) -> Info:
    """What a publish asked for; what does not apply is left out in silence (6.3)."""
    state = call.broker.channel(call.hub.app.id, channel)
    found: Info = {}
    if "user_count" in wanted and state.user_count is not None:
        found["user_count"] = state.user_count
    if "subscription_count" in wanted:
        found["subscription_count"] = state.subscription_count
    return found


# --- reading


def _channels(call: _Call) -> Response | Deferred:
    query = dict(call.params)
    prefix = query.get("filter_by_prefix", "")
    info = read_channel_info(call.params, frozenset({"user_count", "subscription_count"}))
    if "user_count" in info and not prefix.startswith("presence-"):
        raise BadRequestError(
            "user_count may only be requested for presence channels - "
            "please supply filter_by_prefix begining with presence-\n"
        )
    occupied = call.hub.channels
    if len(occupied) <= CHANNELS_PER_STEP:
        return _channels_response([_encode_channels(occupied.items(), prefix, info)])

    async def collect() -> Response:
        items = list(occupied.items())
        parts: list[bytes] = []
        for at in range(0, len(items), CHANNELS_PER_STEP):
            parts.append(_encode_channels(items[at : at + CHANNELS_PER_STEP], prefix, info))
            await trio.lowlevel.checkpoint()
        return _channels_response(parts)

    return Deferred(collect)


def _encode_channels(
    channels: Iterable[tuple[str, Channel]], prefix: str, info: frozenset[str]
) -> bytes:
    """The members of a JSON object, without its braces."""
    found: dict[str, Info] = {}
    for name, state in occupied_channels(channels, prefix).items():
        found[name] = entry = {}
        if "user_count" in info:
            entry["user_count"] = state.user_count or 0
        if "subscription_count" in info:
            entry["subscription_count"] = state.subscription_count
    return encode_body(found)[1:-1]


def _channels_response(parts: Iterable[bytes]) -> Response:
    return Response(200, b'{"channels":{%b}}' % b",".join(part for part in parts if part))


def _channel(call: _Call) -> Response:
    app_id, text = call.hub.app.id, call.route.argument
    name = read_channel(text, call.hub.app)
    info = read_channel_info(call.params, CHANNEL_INFO)
    state = call.broker.channel(app_id, text)
    body: dict[str, Any] = {"occupied": state.occupied}
    if "user_count" in info:
        if not name.is_presence:
            raise BadRequestError(
                "Cannot retrieve the user count unless the channel is a presence channel\n"
            )
        body["user_count"] = state.user_count
    if "subscription_count" in info:
        body["subscription_count"] = state.subscription_count
    if "cache" in info:
        if not name.is_cache:
            raise BadRequestError(
                "Cannot retrieve the cache unless the channel is a cache channel\n"
            )
        event = call.broker.read_cache(app_id, text)
        body["cache"] = event and {"data": event.data, "ttl": ceil(event.ttl_s)}
    return Response(200, encode_body(body))


def _users(call: _Call) -> Response | Deferred:
    ids = call.broker.users(call.hub.app.id, call.route.argument)
    if len(ids) <= USERS_PER_STEP:
        return _users_response([_encode_users(ids)])

    async def collect() -> Response:
        parts: list[bytes] = []
        for at in range(0, len(ids), USERS_PER_STEP):
            parts.append(_encode_users(ids[at : at + USERS_PER_STEP]))
            await trio.lowlevel.checkpoint()
        return _users_response(parts)

    return Deferred(collect)


def _encode_users(ids: Iterable[str]) -> bytes:
    """The members of a JSON array, without its brackets."""
    return encode_body([{"id": user_id} for user_id in ids])[1:-1]


def _users_response(parts: Iterable[bytes]) -> Response:
    return Response(200, b'{"users":[%b]}' % b",".join(parts))


def _stats(call: _Call) -> Response:
    """Deprecated, still documented (6.9)."""
    state = call.broker.channel(call.hub.app.id, call.route.argument)
    body = {"occupied": state.occupied, "connection_count": state.subscription_count}
    if state.user_count is not None:
        body["user_count"] = state.user_count
    return Response(200, encode_body(body))


def _cache(call: _Call) -> Response:
    """Ours: the cached event with what HTTP caches and conditional readers need."""
    event = call.broker.read_cache(call.hub.app.id, call.route.argument)
    if event is None:
        response = _error(404, f"No value is cached on {call.route.argument}\n")
        response.headers = ("Cache-Control: no-store",)
        return response
    etag = f'"{blake2b(event.frame, digest_size=12).hexdigest()}"'
    # What remains, rounded down: a cache in between subtracts the Age once more, which errs to the
    # safe side; it must never serve the value one instant too long.
    fresh = (
        f"ETag: {etag}",
        f"Age: {int(event.age_s)}",
        f"Cache-Control: max-age={int(event.ttl_s)}",
    )
    if not _etags(call.request).isdisjoint({etag, "*"}):
        return Response(304, b"", headers=fresh)
    return Response(200, payload_of(event.frame), headers=fresh)


def _etags(request: Request) -> set[str]:
    text = request.headers.get(b"if-none-match", b"").decode("latin-1")
    return {part.strip().removeprefix("W/") for part in text.split(",")}


# --- users


def _terminate(call: _Call) -> Response | Deferred:
    clients, hub, user_id = call.broker.clients, call.hub, call.route.argument
    left = len(hub.users.sessions_of(user_id))
    if left <= CLOSINGS_PER_STEP:
        clients.terminate(hub, user_id)
        return _EMPTY

    async def terminate_all() -> Response:
        """Those who are signed in now; whoever comes back meanwhile is another matter."""
        for _ in range(0, left, CLOSINGS_PER_STEP):
            clients.terminate(hub, user_id, CLOSINGS_PER_STEP)
            await trio.lowlevel.checkpoint()
        return _EMPTY

    return Deferred(terminate_all)


_ENDPOINTS: Final[dict[str, Callable[[_Call], Response | Deferred]]] = {
    "events": _events,
    "batch_events": _batch_events,
    "plain_event": _plain_event,
    "channels": _channels,
    "channel": _channel,
    "users": _users,
    "stats": _stats,
    "cache": _cache,
    "terminate": _terminate,
}
