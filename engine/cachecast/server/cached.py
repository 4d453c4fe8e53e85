"""A cache channel's value over HTTP: as it is, as soon as it is another one, and each that comes.

A stream is server-sent events: the value, then each newer one, its id the value's ETag; a comment
where nothing is said for a while; and ``pusher:cache_miss`` where there is none, or none any more.
A read with ``wait`` is the plain one, answered when there is something else than the caller has, or
when its time is over. Either looks at the cache when it is told to (``broker/follows.py``), and
what waits for a slow reader is dropped at its deadline.
"""

from __future__ import annotations

from functools import partial
from hashlib import blake2b
from math import inf
from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.broker.views import describe_entry
from cachecast.bus.receipt import Receipt
from cachecast.errors import BadRequestError, RemoteProtocolError
from cachecast.protocol.http_api import (
    JSON_TYPE,
    STREAM_TYPE,
    encode_body,
    is_stream_liked,
    read_channel,
)
from cachecast.server.calls import Call, error_response, read, respond
from cachecast.server.http_messages import Later, Response
from cachecast.server.streaming import Body, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachecast.broker import CachedEvent
    from cachecast.broker.follows import Follow
    from cachecast.channels.cache import CacheEntry
    from cachecast.errors import EngineError
    from cachecast.protocol.channel_name import ChannelName

__all__ = ["read_value"]

#: Seconds that a read may wait: what lies in between mostly ends a silent request after 60.
MAX_WAIT_S: Final = 60.0

#: Seconds of silence after which a comment is sent: so that what lies in between keeps the
#: connection, and a client that has gone without a word is noticed.
COMMENT_S: Final = 15.0

_COMMENT: Final = b":\n\n"
_MISS: Final = "pusher:cache_miss"

_encode = msgspec.json.Encoder().encode


def read_value(call: Call) -> Response | Later | Stream:
    """Answer a read of a channel's value, in one of the three ways."""
    accept = call.request.headers.get(b"accept")
    if accept is not None and is_stream_liked(accept):
        return _stream(call)
    if "wait" in call.query.named:
        return _wait(call)
    event = call.broker.questions.cached(call.hub, call.route.argument)
    return respond(call, event.then(partial(_describe, call, known=_etags(call))))


def _name_of(call: Call) -> ChannelName:
    name = read_channel(call.route.argument, call.hub.app)
    if not name.is_cache:
        raise BadRequestError("The cache can only be read for cache channels\n")
    return name


def _describe(
    call: Call, event: CachedEvent | None, known: set[str], freshness: str = "max-age={}"
) -> Response:
    """What HTTP caches and conditional readers need of a value.

    Args:
        call: the request.
        event: the value; None if there is none.
        known: ETags of what the caller has; ``*`` for whatever there is.
        freshness: directive of ``Cache-Control``, with a place for the seconds that remain.
    """
    if event is None:
        response = error_response(404, f"No value is cached on {call.route.argument}\n")
        response.headers = ("Cache-Control: no-store",)
        return response
    kind = call.answer_type
    if kind == JSON_TYPE:
        body = event.message
    else:
        body = encode_body(
            {"event": event.name, "channel": event.channel, "data": event.data}, kind
        )
    etag = f'"{_digest(body)}"'
    # What remains, rounded down: a cache in between subtracts the Age once more, which errs to the
    # safe side; it must never serve the value one instant too long.
    fresh = (
        f"ETag: {etag}",
        f"Age: {int(event.age_s)}",
        f"Cache-Control: {freshness.format(int(event.ttl_s))}",
        "Vary: Accept",
    )
    if not known.isdisjoint({etag, "*"}):
        return Response(304, b"", headers=fresh)
    return Response(200, body, kind, fresh, call.broker.clock() + event.ttl_s)


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=12).hexdigest()


def _etags(call: Call) -> set[str]:
    text = call.request.headers.get(b"if-none-match", b"").decode("latin-1")
    return {tag for part in text.split(",") if (tag := part.strip().removeprefix("W/"))}


class _Following:
    """A reader that follows a channel from :meth:`follow` on to :meth:`stop`."""

    __slots__ = ("_call", "_follow", "_name", "wheel_slot")

    def __init__(self, call: Call) -> None:
        self.wheel_slot = 0
        self._call = call
        self._name = _name_of(call)
        self._follow: Follow | None = None
        call.broker.follows.check(call.hub)

    def follow(self) -> None:
        """Begin.

        Raises:
            CapacityError, LimitError: others were faster.
        """
        call = self._call
        self._follow = call.broker.follows.open(call.hub, self._name, self)

    def stop(self) -> None:
        """Follow no longer; harmless twice."""
        follow, self._follow = self._follow, None
        if follow is not None:
            self._call.broker.follows.close(self._call.hub.app.id, follow, self)

    def tell(self, now: float) -> None:
        """See :class:`cachecast.broker.follows.Reader`, as for all three."""
        raise NotImplementedError

    def on_due(self, now: float) -> None:
        """The time that was asked for has come."""
        raise NotImplementedError

    def end(self, fault: EngineError | None = None) -> None:
        """It is over."""
        raise NotImplementedError


# --- streams


def _stream(call: Call) -> Stream:
    headers = ("Cache-Control: no-store", "Vary: Accept", "X-Accel-Buffering: no")
    return Stream(_Streamed(call), STREAM_TYPE, headers=headers)


class _Streamed(_Following):
    """The source of one stream.

    What it has said last is the number of a value of this node's store; 0 where it has said that
    there is none, and -1 before it has said anything.
    """

    __slots__ = ("_body", "_known", "_said")

    def __init__(self, call: Call) -> None:
        super().__init__(call)
        self._body: Body | None = None
        self._said = -1
        #: Id of the value that the reader had when it lost its last stream.
        self._known = call.request.headers.get(b"last-event-id", b"").decode("latin-1")

    # --- what the connection says

    def begin(self, body: Body) -> None:
        """See :class:`cachecast.server.streaming.Source`, as for all three."""
        try:
            self.follow()
        except RemoteProtocolError:
            body.end()
            return
        self._body = body

    def on_room(self) -> None:
        """Say what has come meanwhile."""
        self.tell(self._call.broker.clock())

    def on_gone(self) -> None:
        """Nobody reads any more."""
        self._body = None
        self.stop()

    # --- what the channel says

    def tell(self, now: float) -> None:  # type: ignore[explicit-override]
        """Say the value, unless it has been said."""
        body, follow = self._body, self._follow
        if body is None or follow is None or not body.has_room:
            return
        entry = follow.entry(now)
        said = 0 if entry is None else entry.serial
        if said == self._said:
            return
        self._call.broker.delivery.count_read(self._call.hub, is_hit=entry is not None)
        known, self._known, self._said = self._known, "", said
        part, event_id = _miss(self._name.text) if entry is None else _value(entry)
        deadline = inf if entry is None else entry.deadline
        if event_id and event_id == known:
            body.write(_COMMENT)  # it has this value, and knows now that it is heard
        else:
            body.write(part, self._name.text, deadline)
        self._call.broker.follows.remind(self, now + COMMENT_S)

    def on_due(self, now: float) -> None:  # type: ignore[explicit-override]
        """Say that we are here."""
        if self._body is not None:
            if self._body.has_room:
                self._body.write(_COMMENT)
            self._call.broker.follows.remind(self, now + COMMENT_S)

    def end(self, fault: EngineError | None = None) -> None:  # type: ignore[explicit-override]
        """End it in order: browsers come back, to whoever is there then."""
        del fault
        body, self._body = self._body, None
        self.stop()
        if body is not None:
            body.end()


def _value(entry: CacheEntry) -> tuple[bytes, str]:
    """A value as one server-sent event, and its id; JSON has no line ends of its own."""
    message = entry.message
    event_id = _digest(message)
    return b"id: %b\ndata: %b\n\n" % (event_id.encode(), message), event_id


def _miss(channel: str) -> tuple[bytes, str]:
    """That there is no value; the empty id makes a reader forget the last one's."""
    said = _encode({"event": _MISS, "channel": channel, "data": "{}"})
    return b"id:\nevent: %b\ndata: %b\n\n" % (_MISS.encode(), said), ""


# --- reads that wait


def _wait(call: Call) -> Response | Later:
    waiting = _Waiting(call, _seconds(call.query.named["wait"]))
    if not call.hub.is_shared and (response := waiting.attempt()) is not None:
        return response
    return Later(waiting.attempt, waiting.line, waiting.on_gone)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_S:
        raise BadRequestError(
            f"Invalid wait: it must be a number of seconds from 0 to {MAX_WAIT_S:g}\n"
        )
    return seconds


class _Waiting(_Following):
    """One read that waits for something else than its caller has."""

    __slots__ = ("_action", "_fault", "_is_over", "_known", "_seconds")

    def __init__(self, call: Call, seconds: float) -> None:
        super().__init__(call)
        self._seconds = seconds
        self._is_over = seconds <= 0
        self._known = _etags(call)
        self._fault: EngineError | None = None
        self._action: Callable[[], bool] | None = None

    def attempt(self) -> Response | None:
        """The answer; None while there is nothing to say."""
        response = self._answer()
        if response is not None:
            self.stop()
        return response

    def _answer(self) -> Response | None:
        call = self._call
        if self._fault is not None:
            return read(call, Receipt.failed(self._fault))
        if self._follow is not None and not self._follow.is_attached:
            return None
        app_id, broker = call.hub.app.id, call.broker
        if app_id not in broker.hubs:
            return _describe(call, None, set())
        now = broker.clock()
        entry = broker.cache.get(app_id, self._name.text, now)
        event = None
        if entry is not None:
            event = describe_entry(entry, self._name.text, now, broker.cache.ttl_s(app_id))
        # A cache in between may keep it, and asks again each time: by a read that waits, too.
        response = _describe(call, event, self._known, "no-cache")
        if response.status == 304 and "*" in self._known:
            etag = response.headers[0].removeprefix("ETag: ")
            self._known = {etag}  # what there is now, and not what comes
        is_news = response.status == 200 or (event is None and bool(self._known))
        if not (is_news or self._is_over):
            return None
        broker.delivery.count_read(call.hub, is_hit=event is not None)
        return response

    def line(self, action: Callable[[], bool]) -> None:
        """Have ``action`` called when there may be something to say."""
        self._action = action
        if self._follow is not None or self._fault is not None:
            return
        follows = self._call.broker.follows
        try:
            self.follow()
        except RemoteProtocolError as error:
            self._fault = error
            self._call.broker.stepper.add(self._call.hub.app.id, action)
            return
        follows.remind(self, self._call.broker.clock() + self._seconds)

    def on_gone(self) -> None:
        """Nobody waits any more."""
        self._action = None
        self.stop()

    def tell(self, now: float) -> None:  # type: ignore[explicit-override]
        """Try to answer."""
        del now
        if self._action is not None and self._action():
            self.stop()

    def on_due(self, now: float) -> None:  # type: ignore[explicit-override]
        """The time is over: answer with what there is."""
        self._is_over = True
        self.tell(now)

    def end(self, fault: EngineError | None = None) -> None:  # type: ignore[explicit-override]
        """Answer at once."""
        self._fault = fault
        self._is_over = True
        self.tell(0.0)
        self.stop()
