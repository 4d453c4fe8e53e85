"""Metrics pages of targets: what is read of them, and how long and how much at most."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cachecast_load.plan.target import make_target
from cachecast_load.run import scrape


@contextmanager
def serving(write):
    """Serve what `write(send)` sends for every GET; gives the URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            try:
                write(self.wfile.write)
            except OSError:
                pass  # the reader had enough

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(server.serve_forever, 0.01)
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        server.server_close()


def sample(url):
    target = make_target(url="ws://h", app_id="1", key="k", secret="s", metrics_url=url)
    return scrape.sample(target)


def test_a_page_without_end_is_not_read_to_its_end():
    def write(send):
        for _ in range(2 * scrape.MAX_PAGE // 65_536):
            send(b"a 1\n" * 16_384)

    with serving(write) as url, pytest.raises(scrape.ScrapeError, match="longer than 16777216"):
        sample(url)


def test_a_page_that_trickles_in_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(scrape, "TIMEOUT_S", 0.3)
    stopped = threading.Event()

    def write(send):
        while not stopped.wait(0.02):
            send(b"a 1\n")

    with serving(write) as url:
        try:
            with pytest.raises(scrape.ScrapeError, match=r"longer than 0\.3 s"):
                sample(url)
        finally:
            stopped.set()


@pytest.mark.parametrize("page", ["<!doctype html>\n<title>Sign in</title>", '{"status": "ok"}'])
def test_what_is_no_metrics_page_is_said_to_be_none(page):
    with pytest.raises(scrape.ScrapeError, match="not the text of Prometheus metrics"):
        scrape.parse(page)


def test_openmetrics_with_exemplars_and_creation_times_means_the_same():
    page = """# TYPE process_cpu_seconds counter
# UNIT process_cpu_seconds seconds
process_cpu_seconds_total 4.5 # {trace_id="ab, c} 1"} 0.5 1789000000.123
process_cpu_seconds_created 1.789e9
# TYPE x_conflated counter
x_conflated_total{app="a } b",kind="\\"c\\\\"} 3 1789000000123
x_conflated_created{app="a"} 1.789e9
# TYPE x_connections gauge
x_connections NaN
x_connections{worker="1"} 2
# EOF
"""
    assert scrape.parse(page) == {"cpu_seconds": 4.5, "conflated": 3.0, "connections": 2.0}


def test_an_empty_page_tells_nothing():
    assert scrape.parse("\n# EOF\n") == {}
