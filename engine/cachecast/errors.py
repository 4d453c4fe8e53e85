"""Every error that the engine raises on purpose, and how each one is answered on the wire.

The rule of this file: an error carries the evidence and says how to answer it, so that the code
that catches it never has to guess. Libraries' exceptions are translated at the seam where they
appear; nothing above that seam knows them.

    EngineError
      ConfigError             raised at start-up only: names the field, the rule and the remedy
      LocalProtocolError      our code broke the protocol: a bug, never sent to a client
      RemoteProtocolError     the client did something it may not do
        BadMessageError         a frame or message that cannot be understood
        BadRequestError         an HTTP API request with a missing or wrong parameter
        BadChannelNameError     a channel name outside the grammar
        SubscriptionError       a subscription that is refused
        ClientEventError        a client event that is not relayed
        RefusedError            a connection that may not exist (4000-4009)
        AuthError               a signature, key or timestamp is wrong
        LimitError              rate, size or quota:  .limit  .actual  .unit
        CapacityError           this node is full: come back later
      BusError                other nodes cannot be reached
      BrokerClosedError       the broker that is asked has ended
      UpgradeError            one process could not take the place of another one
      ControlError            a running node cannot be asked by its control socket, or refuses

How each is answered (``tests/unit/test_errors.py`` compares this table with the classes):

    ======================  ==========  ===========  ========  ==============================
    class                   close code  HTTP status  is_fatal  what the client library does
    ======================  ==========  ===========  ========  ==============================
    RemoteProtocolError     null        400          no        reports it, stays connected
    BadMessageError         null        400          no        reports it, stays connected
    BadRequestError         null        400          no        raises
    BadChannelNameError     null        400          no        reports it, stays connected
    SubscriptionError       null        400          no        subscription_error on the channel
    ClientEventError        null        400          no        reports it, stays connected
    RefusedError            4009        403          yes       stops for good
    AuthError               null        401          no        reports it, stays connected
    LimitError              null        413          no        reports it, stays connected
    CapacityError           4100        503          yes       reconnects after a second or more
    ======================  ==========  ===========  ========  ==============================

A ``close code`` of null is how hosted Pusher reports a fault that leaves the connection open
(protocol.md 1.7 and 2.9). An instance may carry another code than its class, for example a
``LimitError`` for client events has 4301.

What a client sent is quoted so that its author can find it, and not sent back to it whole:
:func:`clip` cuts every message of a ``RemoteProtocolError``.

Logging an error that nobody expected: as text, ``_log.error(..., traceback=format_exc())``, and not
by ``_log.exception``. What that prints is decided by the embedder's configuration of structlog,
whose default shows local variables, and payloads and secrets are among them.
"""

from __future__ import annotations

__all__ = [
    "AuthError",
    "BadChannelNameError",
    "BadMessageError",
    "BadRequestError",
    "BrokerClosedError",
    "BusError",
    "CapacityError",
    "ClientEventError",
    "ConfigError",
    "ControlError",
    "EngineError",
    "LimitError",
    "LocalProtocolError",
    "RefusedError",
    "RemoteProtocolError",
    "SubscriptionError",
    "UpgradeError",
]

#: Bytes of a message that a client is told.
MAX_MESSAGE_BYTES = 600


def clip(text: str, max_bytes: int = 300) -> str:
    """A text, or what of it fits into so many bytes of UTF-8 and a mark that it was cut."""
    if len(text) * 4 <= max_bytes:
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= max_bytes:
        return text
    return data[:max_bytes].decode("utf-8", "ignore") + "…"


class EngineError(Exception):
    """Base of all errors of the engine; never raised itself."""


class ConfigError(EngineError):
    """A configuration that cannot work, found at start-up.

    Attributes:
        field: path of the field, for example ``apps[0].cache_ttl_s``.
        rule: one sentence that says what must be true.
        remedy: one sentence that says what to do about it; may be empty.
    """

    def __init__(self, field: str, rule: str, remedy: str = "") -> None:
        super().__init__(f"{field}: {rule}" + (f" {remedy}" if remedy else ""))
        self.field = field
        self.rule = rule
        self.remedy = remedy


class LocalProtocolError(EngineError):
    """Our own code was about to break the protocol; always a bug."""


class RemoteProtocolError(EngineError):
    """The other side broke a rule, and this says how to answer.

    Attributes:
        close_code: the code of the ``pusher:error``; None is JSON null.
        http_status: the status if it came in over the HTTP API.
        is_fatal: whether the connection is closed with ``close_code``.
    """

    close_code: int | None = None
    http_status: int = 400
    is_fatal: bool = False

    def __init__(
        self, message: str, *, close_code: int | None = None, http_status: int | None = None
    ) -> None:
        message = clip(message, MAX_MESSAGE_BYTES)
        super().__init__(message)
        self.message = message
        if close_code is not None:
            self.close_code = close_code
        if http_status is not None:
            self.http_status = http_status


class BadMessageError(RemoteProtocolError):
    """A WebSocket message that is not what the protocol asks for."""


class BadRequestError(RemoteProtocolError):
    """An HTTP API request that is malformed or asks for what cannot be had."""


class BadChannelNameError(RemoteProtocolError):
    """A channel name outside the grammar of ``protocol/channel_name.py``."""


class SubscriptionError(RemoteProtocolError):
    """A refused subscription: answered on the channel as well as on the connection.

    Attributes:
        channel: the name as the client sent it.
        kind: ``type`` of the ``pusher:subscription_error`` frame, ``AuthError`` or
            ``LimitReached``.
        status: ``status`` of that frame (protocol.md 9.5).
    """

    def __init__(
        self, message: str, *, channel: str, kind: str = "AuthError", status: int = 401
    ) -> None:
        super().__init__(message)
        self.channel = channel
        self.kind = kind
        self.status = status


class ClientEventError(RemoteProtocolError):
    """A refused client event; its frame names the channel, as some clients expect.

    Over a rate it carries the code 4301 (protocol.md 4).

    Attributes:
        channel: the name as the client sent it, cut to 200 characters.
    """

    def __init__(self, message: str, channel: str, close_code: int | None = None) -> None:
        super().__init__(message, close_code=close_code)
        self.channel = channel[:200]


class RefusedError(RemoteProtocolError):
    """The connection itself may not exist; it is answered and then closed."""

    close_code: int | None = 4009
    http_status = 403
    is_fatal = True


class AuthError(RemoteProtocolError):
    """A signature, key, version or timestamp that does not hold."""

    http_status = 401


class LimitError(RemoteProtocolError):
    """A rate, size or quota was exceeded.

    Attributes:
        limit: the allowed value.
        actual: the value that was asked for; None where only the excess is known.
        unit: the unit of both, for example ``bytes``.
    """

    http_status = 413

    def __init__(
        self,
        message: str,
        *,
        limit: float,
        actual: float | None = None,
        unit: str,
        close_code: int | None = None,
        http_status: int | None = None,
    ) -> None:
        super().__init__(message, close_code=close_code, http_status=http_status)
        self.limit = limit
        self.actual = actual
        self.unit = unit


class CapacityError(RemoteProtocolError):
    """This node is full; another one, or this one later, may serve the client."""

    close_code: int | None = 4100
    http_status = 503
    is_fatal = True


class BusError(EngineError):
    """Other nodes of the cluster cannot be reached.

    Attributes:
        was_maybe_done: whether what was asked may have been done although there is no answer.
    """

    was_maybe_done: bool = False


class BrokerClosedError(EngineError):
    """The broker has ended, and nothing can be asked of it any more."""


class ControlError(EngineError):
    """A running node cannot be asked by its control socket, or has not done what was asked."""


class UpgradeError(EngineError):
    """One process could not take the place of another one; the text says why."""
