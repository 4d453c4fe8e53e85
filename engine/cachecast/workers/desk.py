"""The one admin address of a node with workers: ``/up``, ``/ready`` and ``/metrics`` of them all.

``/ready`` is 200 as long as one worker takes clients. The question is whether a balancer should
send clients to this machine; while one of four is started again, which takes a second or two, the
three others serve three quarters of them at once, and taking the machine out would close the door
for all.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

import trio

from cachecast.broker.journal import Journal
from cachecast.channels.outbox import Backlog
from cachecast.metrics import Family, merge_families, page_of, process_families
from cachecast.server.access import is_inspectors
from cachecast.server.admin import METRICS_TYPE
from cachecast.server.common import Common
from cachecast.server.http_messages import Later, Response, text_response
from cachecast.server.listen import Front
from cachecast.server.poller import Poller
from cachecast.workers.relay import Relay

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from cachecast.config import FileConfig
    from cachecast.server.entrance import InspectorTerms
    from cachecast.server.http_messages import Request
    from cachecast.server.streaming import Stream
    from cachecast.workers.crew import Crew

__all__ = ["Desk"]


class Desk:
    """Answers operators.

    Attributes:
        port: number of the admin address's port.
    """

    def __init__(
        self,
        config: FileConfig,
        listener: socket.socket,
        crew: Crew,
        *,
        lost_log_lines: Callable[[], int],
        engine_ends: Callable[[], int] | None,
        inspector: InspectorTerms | None = None,
    ) -> None:
        """Make it; :meth:`run` serves.

        Args:
            config: limits of HTTP connections.
            listener: listening socket of the admin address; owned from now on.
            crew: workers that are asked.
            lost_log_lines: function that gives the number of lines that the parent could not log.
            engine_ends: function that gives how often the private engine has ended by itself; None
                without one.
            inspector: terms on which people look into the workers; None for numbers only.
        """
        self._crew = crew
        self._lost_log_lines = lost_log_lines
        self._engine_ends = engine_ends
        self._journal = Journal()
        refusals: Counter[str] = Counter()
        self._relay = None if inspector is None else Relay(inspector, crew.posts, refusals)
        self._front = Front(
            partial(
                Common,
                config,
                now=trio.current_time,
                backlog=Backlog(config.max_outbox_bytes, lambda: None),
                refusals=refusals,
                journal=self._journal,
            ),
            Poller(trio.current_time),
            handle_admin=self._answer,
        )
        self._front.listen(listener, is_admin=True)

    @property
    def port(self) -> int | None:
        """Number of the admin address's port."""
        return self._front.admin_port

    def reload(self, config: FileConfig) -> None:
        """Connections that begin from now on have these limits."""
        self._front.common.config = config

    async def run(self) -> None:
        """Serve for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._journal.run)
            nursery.start_soon(self._front.run_timeouts)
            nursery.start_soon(self._front.run_poller)
            if self._relay is not None:
                nursery.start_soon(self._relay.run)

    def _answer(self, request: Request) -> Response | Later | Stream:
        if self._relay is not None and is_inspectors(request.path):
            return self._relay.answer(request)
        if request.method not in {"GET", "HEAD"}:
            return Response(405, b"Only GET\n", "text/plain", ("Allow: GET, HEAD",))
        match request.path:
            case "/up":
                return Response(200, b'{"health":"OK"}')
            case "/ready":
                is_ready = self._crew.n_ready > 0 and not self._crew.is_ending
                return Response(
                    *((200, b'{"ready":true}') if is_ready else (503, b'{"ready":false}'))
                )
            case "/metrics":
                return self._answer_metrics(request.query)
            case _:
                return Response(404, b"404 NOT FOUND\n", "text/plain; charset=utf-8")

    def _answer_metrics(self, query: str) -> Response | Later:
        wanted = parse_qs(query, keep_blank_values=True).get("worker")
        if wanted is None:
            return self._later(self._sum)
        numbers = {str(post.number): post for post in self._crew.posts}
        post = numbers.get(wanted[-1])
        if post is None:
            return text_response(404, f"There is no such worker; there are 1 to {len(numbers)}")
        return self._later(lambda: post.families)

    def _later(self, collect: Callable[[], list[Family]]) -> Later:
        return Later(lambda: Response(200, page_of(collect()), METRICS_TYPE), self._crew.ask)

    def _sum(self) -> list[Family]:
        own = process_families()
        own.append(_family("cachecast_log_lines_dropped", "counter", "", self._lost_log_lines()))
        if self._engine_ends is not None:
            text = "How often the private engine ended by itself and was started again."
            own.append(_family("cachecast_engine_restarts", "counter", text, self._engine_ends()))
        parts = [post.families for post in self._crew.posts]
        return merge_families([*parts, own]) + self._workers()

    def _workers(self) -> list[Family]:
        """What tells workers apart at a glance; ``?worker=N`` has all the rest."""
        posts = self._crew.posts
        return [
            _of_each("cachecast_worker_up", "gauge", "1 while a worker takes clients.",
                     {post.number: float(post.is_ready) for post in posts}),
            _of_each("cachecast_worker_connections", "gauge", "Open connections of a worker.",
                     {post.number: post.connections for post in posts}),
            _of_each("cachecast_worker_restarts", "counter",
                     "How often a worker ended by itself and was started again.",
                     {post.number: float(post.backoff.n_ends) for post in posts}),
        ]  # fmt: skip


def _family(name: str, kind: str, text: str, value: float) -> Family:
    return Family(name, kind, text, [(name + _suffix(kind), {}, float(value))])


def _of_each(name: str, kind: str, text: str, values: dict[int, float]) -> Family:
    return Family(
        name,
        kind,
        text,
        [(name + _suffix(kind), {"worker": str(n)}, value) for n, value in values.items()],
    )


def _suffix(kind: str) -> str:
    return "_total" if kind == "counter" else ""
