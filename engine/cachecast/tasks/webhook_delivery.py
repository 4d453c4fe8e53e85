"""One batch of webhook events on its way to one URL: signed, posted, tried again, given up.

The rule of this file: the receiver may be slow, wrong or hostile, and none of it reaches further
than this one delivery. An answer counts as soon as its status line is here; its body is read only
so that the connection can be used again, and only up to a bound. Nothing that could be a secret
(payload, header value, query or userinfo of the URL) is ever logged or put into an error.

It knows neither queues nor the order of events; :mod:`cachecast.tasks.webhooks` does.

Source: Pusher's "Webhooks" page, the server libraries' validators (protocol.md 7).
"""

from __future__ import annotations

import ipaddress
import socket
from collections import OrderedDict
from contextlib import aclosing
from functools import partial
from http.cookiejar import CookieJar, DefaultCookiePolicy
from importlib import metadata
from typing import TYPE_CHECKING, Final, cast
from urllib.parse import urlsplit

import msgspec
import structlog
import trio

from cachecast.events import AppEvent
from cachecast.protocol.auth import sign
from cachecast.tasks.turns import MAX_REQUESTS, Standing, Turns

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable, Mapping, Sequence

    import httpx2

    from cachecast.apps import App, Webhook
    from cachecast.metrics import Durations
    from cachecast.tasks.turns import Turn
    from cachecast.tracing import Tracing, WebhookSpan

__all__ = ["Courier", "Endpoint", "open_client"]

#: Seconds for the whole of one try: connect, send, answer (protocol.md 7).
ANSWER_LIMIT_S: Final = 4.0

#: Seconds after the first try in which others follow. Pusher's figure; the last try is made exactly
#: then.
RETRY_FOR_S: Final = 300.0

#: Seconds of the first pause at most: before retry n it is drawn from 0 to this times 2^(n-1)
#: ("full jitter", AWS Architecture Blog, "Exponential Backoff And Jitter": fewest calls and least
#: crowding of what they compare).
FIRST_BACKOFF_S: Final = 1.0

#: Seconds of the longest pause, so that a receiver that is back is noticed within a minute. Makes
#: about 16 tries in five minutes.
MAX_BACKOFF_S: Final = 60.0

#: Bytes of an answer's body that are read to keep its connection; real ones are empty or "OK".
MAX_ANSWER_BYTES: Final = 64 * 1024

#: Seconds that closing a connection may take when everything around it is cancelled already.
CLOSE_GRACE_S: Final = 1.0

#: Seconds between two lines in the log about a receiver that is down, for each URL.
LOG_INTERVAL_S: Final = 60.0

#: Headers that a hook's own may not set: the validators compare the first three, and the last two
#: would break the framing of the request.
_OWN_HEADERS: Final = frozenset(
    {"content-type", "x-pusher-key", "x-pusher-signature", "user-agent"}
    | {"content-length", "transfer-encoding"}
)

_log = structlog.get_logger("cachecast.webhooks")


class _Body(msgspec.Struct):
    time_ms: int
    events: Sequence[AppEvent]


class Endpoint:
    """One URL of one app, and what a request to it needs.

    Attributes:
        url: the URL in full.
        place: host and path of the URL, which is what may be logged.
        app_id: id of the app that it belongs to.
        next_log_at: time from which its failures may be logged again, in seconds of Trio's clock.
        failure: why the last try failed, fit for a log; None if it was accepted, or none was made.
        failing_since: time of the first failure since something was accepted, in seconds of Trio's
            clock.
        standing, trying_since: state of its turns, see :class:`~cachecast.tasks.turns.Turns`.
    """

    __slots__ = (
        "_hook", "_key", "_secret", "app_id", "failing_since", "failure", "next_log_at", "place",
        "standing", "trying_since", "url",
    )  # fmt: skip

    def __init__(self, app: App, hook: Webhook) -> None:
        parts = urlsplit(hook.url)
        # Not parts.netloc: it has the userinfo.
        port = "" if parts.port is None else f":{parts.port}"
        self.url = hook.url
        self.place = f"{parts.hostname}{port}{parts.path}"
        self.app_id = app.id
        self.next_log_at = -float("inf")
        self.failure: str | None = None
        self.failing_since = 0.0
        self.standing = Standing.NEW
        self.trying_since: OrderedDict[Turn, float] = OrderedDict()
        self.serve(app, hook)

    def serve(self, app: App, hook: Webhook) -> None:
        """Go by other terms for the same URL, retries of what is under way included."""
        self._hook = hook
        oldest = app.key_pairs[0]
        self._key, self._secret = oldest.key, oldest.secret.encode()

    def note_outcome(self, failure: str | None, now: float) -> None:
        """Note how a try ended, for an operator."""
        if failure is not None and self.failure is None:
            self.failing_since = now
        self.failure = failure

    def wants(self, name: str, channel: str) -> bool:
        """Whether the event's name and channel pass this URL's filters."""
        hook = self._hook
        return (not hook.events or name in hook.events) and (
            not hook.channel_prefixes or channel.startswith(hook.channel_prefixes)
        )

    def headers(self, body: bytes) -> dict[str, str]:
        """The headers of a request with this very body.

        The content type is exactly that: Pusher's node library compares it as a string, and a
        charset behind it makes the webhook invalid there.
        """
        extra = {n: v for n, v in self._hook.headers.items() if n.lower() not in _OWN_HEADERS}
        return extra | {
            "Content-Type": "application/json",
            "User-Agent": _USER_AGENT,
            "X-Pusher-Key": self._key,
            "X-Pusher-Signature": sign(self._secret, body),
        }


def open_client() -> httpx2.AsyncClient:
    """Make the one client of the node. Blocks for 40 to 470 ms (it loads the CA certificates).

    It follows no redirects, keeps no cookies (they would travel between tenants who have the
    same receiver), and has no time limits of its own: :class:`Courier` sets one around each try.
    It does honour ``HTTPS_PROXY`` and ``SSL_CERT_FILE``, which operators need.
    """
    # Here, so that a node without webhooks pays neither the 70 ms nor the memory.
    import httpx2  # noqa: PLC0415

    return httpx2.AsyncClient(
        timeout=None,
        follow_redirects=False,
        limits=httpx2.Limits(max_connections=MAX_REQUESTS, max_keepalive_connections=20),
        cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
    )


class Courier:
    """Takes batches to their URLs.

    A try waits for its turn *before* its 4 s begin: in the client's own pool the wait would count,
    and receivers that hang would make the deliveries of other tenants fail.
    """

    def __init__(
        self,
        client: httpx2.AsyncClient,
        unix_now: Callable[[], float],
        jitter: Callable[[], float],
        delays: Durations,
        tracing: Tracing | None = None,
    ) -> None:
        """Borrow a client.

        Args:
            client: HTTP client for all requests; closed by whoever opened it.
            unix_now: function that gives the wall time in seconds, for ``time_ms``.
            jitter: function that draws a number from 0 to 1.
            delays: where the time of each delivery is counted, from its first try on.
            tracing: what begins a span for each try; None for no spans.
        """
        self._client = client
        self._delays = delays
        self._unix_now = unix_now
        self._jitter = jitter
        self._tracing = tracing
        self._turns = Turns()
        self._last_chance = trio.Event()
        self._unreachable: set[Endpoint] = set()

    def begin_last_chance(self) -> None:
        """From now on whatever waits is tried once more at once, and then given up.

        A URL that does not even answer is given up as a whole: its other events would wait as long
        for nothing. They count as ``failed``, and the caller says how many there were.
        """
        self._last_chance.set()

    async def deliver(
        self, endpoint: Endpoint, events: Sequence[AppEvent], outcomes: Counter[str]
    ) -> bool:
        """Post events until they are accepted, or until five minutes after the first try.

        If cancelled, a request that was under way may or may not have been received.

        Args:
            endpoint: the URL that they are sent to.
            events: events of one body, in order.
            outcomes: counter that gets every event as ``delivered`` or ``failed`` in the end, and
                as ``retried`` at every try but the first.

        Returns:
            Whether they were accepted.
        """
        began_at = trio.current_time()
        last_try_at = float("inf")
        n_tries = 0
        while True:
            async with self._turns.hold(endpoint) as turn:
                if endpoint in self._unreachable:
                    outcomes["failed"] += len(events)
                    return False
                now = trio.current_time()
                if n_tries == 0:
                    last_try_at = now + RETRY_FOR_S
                else:
                    outcomes["retried"] += len(events)
                failure = await self._try(endpoint, events, turn, n_tries)
            n_tries += 1
            endpoint.note_outcome(failure, trio.current_time())
            if failure is None:
                outcomes["delivered"] += len(events)
                self._delays.observe(trio.current_time() - began_at)
                return True
            if self._last_chance.is_set():
                outcomes["failed"] += len(events)
                return False
            now = trio.current_time()
            if now >= last_try_at:
                outcomes["failed"] += len(events)
                self._log_given_up(endpoint, failure, n_tries, len(events))
                return False
            self._log_failure(endpoint, failure, now)
            pause_s = self._jitter() * min(
                MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(n_tries - 1, 9)
            )
            with trio.move_on_at(min(now + pause_s, last_try_at)):
                await self._last_chance.wait()

    async def _try(
        self, endpoint: Endpoint, events: Sequence[AppEvent], turn: Turn, n_tries: int
    ) -> str | None:
        """Post once. Returns why it was not accepted, fit for a log, or None if it was."""
        if self._tracing is None:
            return (await self._post(endpoint, events, turn, None))[1]
        with self._tracing.webhook(endpoint.url, endpoint.app_id, events, n_tries) as span:
            status, failure = await self._post(endpoint, events, turn, span)
            span.answered(status, failure)
            return failure

    async def _post(
        self,
        endpoint: Endpoint,
        events: Sequence[AppEvent],
        turn: Turn,
        span: WebhookSpan | None,
    ) -> tuple[int | None, str | None]:
        """Returns the status, if there was one, and why it is none of success."""
        # An event that cannot be encoded fails before any other await; this keeps the checkpoint.
        await trio.lowlevel.checkpoint()
        status: int | None = None
        failure = f"no answer within {ANSWER_LIMIT_S:g} s"
        try:
            with trio.move_on_after(ANSWER_LIMIT_S):
                response = await self._send(endpoint, events, turn, span)
                status = response.status_code
                await _discard_body(response)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001
            # One of the two places in the engine that catch everything. Names that do not
            # resolve, TLS, half answers, a header value that no client can encode: the list has
            # no end, and none of it may stop the deliveries to other URLs. Cancelled is no
            # Exception and passes.
            failure = _describe(error)
        if status is None:
            if self._last_chance.is_set():
                self._unreachable.add(endpoint)
            return None, failure
        return status, None if 200 <= status < 300 else f"status {status}"

    async def _send(
        self,
        endpoint: Endpoint,
        events: Sequence[AppEvent],
        turn: Turn,
        span: WebhookSpan | None,
    ) -> httpx2.Response:
        """Sign anew and send; returns when the head of the answer is here.

        Anew, because Pusher's Python library refuses a ``time_ms`` that is older than 300 s.
        """
        body = msgspec.json.encode(_Body(int(self._unix_now() * 1000), events))
        headers = endpoint.headers(body)
        if span is not None:
            span.inject(headers)
        request = self._client.build_request("POST", endpoint.url, content=body, headers=headers)
        # httpx2 writes the URL of every request to the log of the process that embeds us, at
        # INFO and in full. So it gets one without secrets, and the real target beside it.
        url = request.url
        request.extensions["target"] = url.raw_path
        request.url = url.copy_with(username="", password="", query=None, fragment=None)
        request.extensions["trace"] = partial(_look_up_first, turn)
        credentials = (url.username, url.password) if url.userinfo else None
        return await self._client.send(request, auth=credentials, stream=True)

    def _log_failure(self, endpoint: Endpoint, failure: str, now: float) -> None:
        if now < endpoint.next_log_at:
            return
        endpoint.next_log_at = now + LOG_INTERVAL_S
        _log.warning(
            "webhook not accepted, will retry",
            app=endpoint.app_id, url=endpoint.place, failure=failure,
        )  # fmt: skip

    def _log_given_up(self, endpoint: Endpoint, failure: str, n_tries: int, n_events: int) -> None:
        # Needs no limit of its own: each lane can give up once in five minutes.
        _log.warning(
            "webhook given up",
            app=endpoint.app_id, url=endpoint.place, failure=failure, tries=n_tries,
            events=n_events,
        )  # fmt: skip


async def _look_up_first(turn: Turn, event: str, info: Mapping[str, object]) -> None:
    """Resolve the name of a new connection once before the HTTP client does, in a thread of ours.

    Nobody can stop a look-up. The client's would hold one of the 40 threads that the whole process
    has, long after its request was given up, and a few names whose servers are silent would keep
    everybody else from connecting. Ours holds the request's turn, and the client asks only for
    names that are answered. What the answer is, is its business.
    """
    if event != "connection.connect_tcp.started":
        return
    host, port = str(info["host"]), cast("int", info["port"])
    if not _is_address(host):
        try:
            await trio.to_thread.run_sync(
                socket.getaddrinfo, host, port, abandon_on_cancel=True,
                limiter=cast("trio.CapacityLimiter", turn),
            )  # fmt: skip
        except OSError:
            pass


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


async def _discard_body(response: httpx2.Response) -> None:
    """Read the body so that the connection can be used again; drop both if it is too long."""
    try:
        n_bytes = 0
        # Raw: a compressed answer is never unpacked.
        if not response.is_stream_consumed:
            async with aclosing(response.aiter_raw()) as chunks:
                async for chunk in chunks:
                    n_bytes += len(chunk)
                    if n_bytes > MAX_ANSWER_BYTES:
                        break
    finally:
        with trio.move_on_after(CLOSE_GRACE_S, shield=True):
            await response.aclose()


def _describe(error: Exception) -> str:
    """Say what went wrong without quoting anybody.

    Messages of HTTP libraries can quote a header ("Illegal header value ..."). Those of the
    operating system and of TLS cannot, and they are what an operator needs: which name did not
    resolve, which certificate did not fit.
    """
    cause: BaseException | None = error
    for _ in range(8):
        if cause is None or isinstance(cause, OSError):
            break
        cause = cause.__cause__ or cause.__context__
    name = type(error).__name__
    return f"{name}: {cause}" if isinstance(cause, OSError) else name


def _version() -> str:
    try:
        return metadata.version("cachecast")
    except metadata.PackageNotFoundError:  # run from a source tree that was never installed
        return "0"


_USER_AGENT: Final = f"Cachecast/{_version()}"
