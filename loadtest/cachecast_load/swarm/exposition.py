"""An address of its own at which a run can be watched while it goes on: OpenMetrics over HTTP.

A page is made at most once a second, however many ask; whoever asks in between gets that one. So
the run pays the same for a Prometheus and for ten of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from gevent.pool import Pool
from gevent.pywsgi import WSGIServer

from cachecast_load.report.openmetrics import expose
from cachecast_load.run.run import Run

FRESH_S = 1.0
_MOST_AT_ONCE = 16
_WHERE = b"The metrics of the load test that goes on are at /metrics.\n"
Start = Callable[[str, list[tuple[str, str]]], object]


class AddressError(Exception):
    """An address that cannot be had; the text says which, why, and what to do."""


class Exposition:
    """Serves the metrics of the run that goes on; use as a context manager.

    Args:
        run: Returns that run.
        host: Where to listen.
        port: Where to listen; 0 for any.

    Raises:
        AddressError: On entering it; the address cannot be had.
    """

    def __init__(self, run: Callable[[], Run], host: str, port: int) -> None:
        self._run = run
        self._made: dict[str, tuple[float, bytes, str]] = {}
        self._server = WSGIServer(
            (host, port), self._answer, log=None, error_log=None, spawn=Pool(_MOST_AT_ONCE)
        )

    def __enter__(self) -> Exposition:
        try:
            self._server.start()
        except OSError as error:
            host, port = self._server.address
            raise AddressError(
                f"--live {host}:{port}: {error.strerror}; give another address, or port 0 for any"
            ) from error
        return self

    def __exit__(self, *_exception: object) -> None:
        self._server.stop(timeout=0)

    @property
    def url(self) -> str:
        """Where the metrics are."""
        host, port = self._server.server_host, self._server.server_port
        return f"http://{f'[{host}]' if ':' in host else host}:{port}/metrics"

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page and its content type; the last one if that is younger than a second."""
        form = "text" if "text/plain" in accept and "openmetrics" not in accept else "openmetrics"
        made_s, body, content_type = self._made.get(form, (0.0, b"", ""))
        now_s = time.monotonic()
        if not body or now_s - made_s >= FRESH_S:
            body, content_type = expose(self._run(), accept)
            self._made[form] = now_s, body, content_type
        return body, content_type

    def _answer(self, environ: dict[str, Any], start: Start) -> Iterable[bytes]:
        status, body, content_type = "200 OK", _WHERE, "text/plain; charset=utf-8"
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"Only GET and HEAD.\n"
        elif environ["PATH_INFO"] == "/metrics":
            body, content_type = self.page(environ.get("HTTP_ACCEPT", ""))
        elif environ["PATH_INFO"] != "/":
            status = "404 Not Found"
        start(status, [("Content-Type", content_type), ("Content-Length", str(len(body)))])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]
