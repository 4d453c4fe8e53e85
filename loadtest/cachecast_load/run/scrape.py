"""The target's own figures from its Prometheus endpoint: memory, processor, queues, conflation.

Read once a second and reduced to a few names that mean the same for every target; nothing is
assumed about which of them exist.
"""

from __future__ import annotations

import http.client
import math
import re
import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from cachecast_load.plan.target import Target, tls_context
from cachecast_load.run.figures import rss_growth

TIMEOUT_S = 2.0
MAX_PAGE = 16 * 1024 * 1024
_NAME_END = re.compile(r"[{\s]")

# What we call it -> how targets call it; several series of one name are added up.
_NAMES = {
    "rss_bytes": re.compile(r"resident_memory_bytes$|rss_bytes$|_memory_rss$"),
    "cpu_seconds": re.compile(r"(^|_)cpu_seconds_total$|process_cpu_seconds"),
    "queued_bytes": re.compile(r"(outbox|queue|buffer)\w*bytes$"),
    "conflated": re.compile(r"conflated\w*$"),
    "connections": re.compile(r"^\w*connections$|_connected$"),
    "cache_entries": re.compile(r"cache_(entries|values)$"),
}


class ScrapeError(Exception):
    """The metrics could not be read; the text says why."""


def sample(target: Target) -> dict[str, float]:
    """Return what all metrics pages of the target tell, added up.

    Raises:
        ScrapeError: one could not be read; a sum without it would be a step and not a figure.
    """
    total: dict[str, float] = {}
    for url in target.metrics_urls:
        try:
            found = parse(fetch(target, url))
        except ScrapeError as error:
            raise ScrapeError(f"the metrics at {url}: {error}") from error
        for name, value in found.items():
            total[name] = total.get(name, 0.0) + value
    return total


def fetch(target: Target, url: str) -> str:
    """Return the text of one metrics page.

    Raises:
        ScrapeError: unreachable, too slow, too large, or not 200.
    """
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            str(parts.hostname), port, timeout=TIMEOUT_S, context=tls_context(target)
        )
    else:
        connection = http.client.HTTPConnection(str(parts.hostname), port, timeout=TIMEOUT_S)
    try:
        path = (parts.path or "/metrics") + (f"?{parts.query}" if parts.query else "")
        connection.request("GET", path, headers=dict(target.headers))
        response = connection.getresponse()
        body = _read(response)
    except (OSError, http.client.HTTPException) as error:
        raise ScrapeError(str(error) or type(error).__name__) from error
    finally:
        connection.close()
    if response.status != 200:
        raise ScrapeError(f"HTTP {response.status}")
    return body.decode("utf-8", "replace")


def _read(response: http.client.HTTPResponse) -> bytes:
    """Return the body; the socket's own timeout bounds one read and not a page that trickles in."""
    end_s = time.monotonic() + TIMEOUT_S
    body = bytearray()
    while part := response.read1(65_536):
        body += part
        if len(body) > MAX_PAGE:
            raise ScrapeError(f"the page is longer than {MAX_PAGE} bytes")
        if time.monotonic() > end_s:
            raise ScrapeError(f"the page takes longer than {TIMEOUT_S:g} s")
    return bytes(body)


def parse(text: str) -> dict[str, float]:
    """Reduce a metrics page to our few names.

    Raises:
        ScrapeError: it is no Prometheus text.
    """
    samples = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    # A sample takes the parser 8 us, a page may have thousands, and meanwhile nothing is received:
    # only those of interest are parsed, and the first, to see that it is such a page.
    wanted = samples[:1] + [line for line in samples[1:] if _ours(_NAME_END.split(line, 1)[0])]
    found: dict[str, float] = {}
    try:
        for family in text_string_to_metric_families("\n".join(wanted)):
            for sample in family.samples:
                ours = _ours(sample.name)
                if ours and math.isfinite(sample.value):
                    found[ours] = found.get(ours, 0.0) + sample.value
    except ValueError as error:
        raise ScrapeError(f"not the text of Prometheus metrics: {str(error)[:80]}") from error
    return found


@lru_cache(10_000)
def _ours(name: str) -> str | None:
    """Return what we call a metric, None for what is not of interest."""
    if name.endswith("_created"):
        return None  # when a counter was made, which is a time, and huge
    bare = name.removesuffix("_total") if "conflated" in name else name
    return next((ours for ours, pattern in _NAMES.items() if pattern.search(bare)), None)


def server_figures(
    samples: Iterable[dict[str, float]], measured_s: tuple[float, float]
) -> dict[str, float]:
    """Return `server.*` figures of the measured stretch from samples that carry `t_s`."""
    every = list(samples)
    inside = [s for s in every if measured_s[0] <= s["t_s"] <= measured_s[1]]
    figures: dict[str, float] = {}
    rss = [s["rss_bytes"] for s in inside if "rss_bytes" in s]
    if rss:
        figures["server.rss_max_bytes"] = max(rss)
        growth = rss_growth(rss)
        if growth is not None:
            figures["server.rss_growth"] = round(growth, 4)
    cpu = [(s["t_s"], s["cpu_seconds"]) for s in inside if "cpu_seconds" in s]
    if len(cpu) >= 2 and cpu[-1][0] > cpu[0][0]:
        used = (cpu[-1][1] - cpu[0][1]) / (cpu[-1][0] - cpu[0][0])
        figures["server.cpu_mean"] = round(used, 4)
    conflated = [s["conflated"] for s in every if "conflated" in s]
    if conflated:
        # A counter that only appears with its first case began at 0.
        before = conflated[0] if len(conflated) == len(every) and len(every) > 1 else 0.0
        figures["server.conflated"] = conflated[-1] - before
    return figures


def rows(samples: Iterable[dict[str, float]]) -> list[dict[str, Any]]:
    """Return samples with the processor's seconds turned into cores, for a chart."""
    out: list[dict[str, Any]] = []
    last: dict[str, float] | None = None
    for sample in samples:
        row: dict[str, Any] = {k: v for k, v in sample.items() if k != "cpu_seconds"}
        if last and "cpu_seconds" in sample and "cpu_seconds" in last:
            seconds = sample["t_s"] - last["t_s"]
            if seconds > 0:
                row["cpu"] = round((sample["cpu_seconds"] - last["cpu_seconds"]) / seconds, 4)
        last = sample
        out.append(row)
    return out
