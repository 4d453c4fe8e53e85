"""A request of the HTTP API on its way: what it is, and how it is answered, now or later.

What an endpoint asks of the broker is a receipt, which may be done already; what takes many steps
is made in turns with the other apps.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from cachecast.bus.receipt import Receipt
from cachecast.errors import BusError, RemoteProtocolError
from cachecast.protocol.http_api import JSON_TYPE, MSGPACK_TYPES, encode_body, find_answer_type
from cachecast.server.http_messages import Later, Request, Response

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from cachecast.broker import Broker
    from cachecast.channels.hub import Hub
    from cachecast.protocol import auth
    from cachecast.protocol.http_api import Route

__all__ = ["Call", "error_response", "in_steps", "note", "read", "refuse", "respond"]

T = TypeVar("T")

_EMPTY: Final = Response(200, b"{}")

#: Texts of answers about other nodes; why they cannot be reached is for the journal and the
#: operator.
UNREACHABLE: Final = (
    "The other nodes cannot be reached, or cannot take it now: nothing was done, try again\n"
)
OUTCOME_UNKNOWN: Final = "The other nodes did not answer: it may have been published all the same\n"


class Call:
    """A verified request on its way to its endpoint."""

    __slots__ = ("broker", "hub", "query", "request", "route")

    def __init__(
        self, broker: Broker, hub: Hub, request: Request, route: Route, query: auth.Query
    ) -> None:
        self.broker = broker
        self.hub = hub
        self.request = request
        self.route = route
        self.query = query

    @property
    def is_msgpack(self) -> bool:
        """Whether the body is msgpack."""
        kind = self.request.headers.get(b"content-type")
        if kind is None or kind == b"application/json":
            return False
        return kind.partition(b";")[0].strip().lower().decode("latin-1") in MSGPACK_TYPES

    @property
    def answer_type(self) -> str:
        """The media type that the caller likes best, of those that there are."""
        accept = self.request.headers.get(b"accept")
        return JSON_TYPE if accept is None else find_answer_type(accept)

    def answer(self, value: object, status: int = 200, *headers: str) -> Response:
        """A success, in the form that the caller asked for."""
        kind = self.answer_type
        return Response(status, encode_body(value, kind), kind, headers)

    def answer_empty(self) -> Response:
        """What most publishes are answered with."""
        accept = self.request.headers.get(b"accept")
        is_json = accept is None or find_answer_type(accept) == JSON_TYPE
        return _EMPTY if is_json else self.answer({})


def note(broker: Broker, hub: Hub | None, route: str, status: int, reason: str) -> None:
    """Say why a request was refused, for an operator; its path and query are the client's words."""
    app_id = None if hub is None else hub.app.id
    broker.clients.journal.note(
        "HTTP request refused", app=app_id, code=status, reason=reason, route=route
    )


def refuse(broker: Broker, hub: Hub | None, route: Route, error: RemoteProtocolError) -> Response:
    """Refuse a request: for its caller, for the counters and for the operator."""
    note(broker, hub, route.name, error.http_status, error.message)
    refusals = hub.counters.refusals if hub is not None else broker.clients.refusals
    refusals[f"http {error.http_status}"] += 1
    return error_response(error.http_status, error.message.rstrip("\n") + "\n")


def error_response(status: int, text: str) -> Response:
    """An error in plain text, as hosted Pusher's are."""
    return Response(status, text.encode("utf-8", "replace"), "text/plain; charset=utf-8")


def respond(call: Call, receipt: Receipt[Response]) -> Response | Later:
    """Answer with what the nodes have to agree on: now if they have, or when they do."""
    if receipt.is_done:
        return read(call, receipt)
    return Later(lambda: read(call, receipt) if receipt.is_done else None, receipt.when_done)


def read(call: Call, receipt: Receipt[Response]) -> Response:
    """The answer of a receipt that is done."""
    try:
        return receipt.value
    except RemoteProtocolError as error:
        return refuse(call.broker, call.hub, call.route, error)
    except BusError as error:
        note(call.broker, call.hub, call.route.name, 503, str(error))
        call.hub.counters.refusals["http 503"] += 1
        response = error_response(503, OUTCOME_UNKNOWN if error.was_maybe_done else UNREACHABLE)
        response.headers = ("Retry-After: 1",)
        return response


def in_steps(
    call: Call, receipt: Receipt[T], begin: Callable[[T], Generator[None, None, Response]]
) -> Later:
    """Answer with what takes many steps, once it is known.

    Args:
        call: the request and who handles it.
        receipt: receipt of what the answer is made from.
        begin: function that makes the answer; a step ends with each ``yield``.
    """
    work: Generator[None, None, Response] | None = None

    def step() -> Response | None:
        nonlocal work
        if not receipt.is_done:
            return None
        if receipt.fault is not None:
            return read(call, Receipt.failed(receipt.fault))
        if work is None:
            work = begin(receipt.value)
        try:
            next(work)
        except StopIteration as end:
            response: Response = end.value
            return response
        return None

    add = partial(call.broker.stepper.add, call.hub.app.id)
    return Later(step, lambda action: receipt.when_done(lambda: add(action)))
