"""Logs: readable on a terminal, JSON otherwise; one line for what an operator would ask about."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, MutableMapping

    from cachecast.cli.sink import Sink

__all__ = ["configure_logs", "set_log_level"]


def configure_logs(
    log_format: str, level: str, sink: Sink
) -> Callable[[MutableMapping[str, Any]], None]:
    """Send structlog to a sink, for the whole process.

    Args:
        log_format: format of a line: ``console``, ``json``, or ``auto`` for console on a terminal.
        level: lowest level that is logged, of ``debug``, ``info``, ``warning``, ``error``.
        sink: sink of stderr; what it loses is logged.

    Returns:
        Function that writes a line in the same form for another process: what its JSON says.
    """
    is_console = log_format == "console" or (log_format == "auto" and sink.is_terminal)
    timestamper = structlog.processors.TimeStamper(fmt="iso", utc=True)
    processors: list[structlog.types.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        timestamper,
    ]
    if is_console:
        # The default formatter, rich's, prints local variables: payloads, secrets.
        processors.append(
            structlog.dev.ConsoleRenderer(
                colors=sink.is_terminal and "NO_COLOR" not in os.environ,
                exception_formatter=structlog.dev.plain_traceback,
            )
        )
    else:
        processors += [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    lines = _Lines(sink)
    structlog.configure(
        processors=processors,
        logger_factory=lambda *_: lines,
        # Or the level could not change; it costs each line 0.8 us, and there are few of them.
        cache_logger_on_first_use=False,
    )
    set_log_level(level)
    log = structlog.get_logger("cachecast.logs")
    # An error at any level: who reads only errors must know that some may be missing.
    sink.on_loss = lambda n_lines: log.error(
        "log lines dropped", lost=n_lines, since_start=sink.n_dropped
    )
    # Libraries must not write payloads or URLs with keys to our logs.
    logging.getLogger().setLevel(logging.WARNING)
    render = processors[-1]

    def pass_on(entry: MutableMapping[str, Any]) -> None:
        lines.msg(str(render(None, "", entry)))

    return pass_on


def set_log_level(level: str) -> None:
    """Log from this level on, of ``debug``, ``info``, ``warning``, ``error``."""
    number = logging.getLevelName(level.upper())
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(number))


class _Lines:
    """The end of structlog's chain: a line is on its way when it is in the queue."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def msg(self, line: str) -> None:
        self._sink.put(line + "\n")

    log = debug = info = warn = warning = err = error = exception = critical = fatal = failure = msg
