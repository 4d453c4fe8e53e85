"""Logs: readable on a terminal, JSON otherwise; one line for what an operator would ask about."""

from __future__ import annotations

import logging
import os
import sys

import structlog

__all__ = ["configure_logs"]


def configure_logs(log_format: str, level: str) -> None:
    """Send structlog to stderr.

    Args:
        log_format: ``console``, ``json``, or ``auto`` for console on a terminal.
        level: of ``debug``, ``info``, ``warning``, ``error``.
    """
    is_console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
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
                colors=sys.stderr.isatty() and "NO_COLOR" not in os.environ,
                exception_formatter=structlog.dev.plain_traceback,
            )
        )
    else:
        processors += [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries must not write payloads or URLs with keys to our logs.
    logging.getLogger().setLevel(logging.WARNING)
