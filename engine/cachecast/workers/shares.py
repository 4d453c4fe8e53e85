"""What of a node's limits is one worker's.

Limits that are a sum over the node (clients, cached values, what waits for slow clients) are
divided, so that the sum over the workers is what was configured, and is never exceeded. Which
worker a client comes to is chance, so one may be full while another has room: of 10,000 clients on
four workers each got 2,442 to 2,538. What is of one channel, one connection or one event stays as
it is. So do an app's own limits that the bus counts over all nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.errors import ConfigError

if TYPE_CHECKING:
    from cachecast.config import FileConfig

__all__ = ["share_of", "shares_of"]

#: Limits of the node that are divided among its workers.
_DIVIDED: Final = ("max_connections", "max_cache_entries", "max_cache_bytes", "max_outbox_bytes")


def share_of(config: FileConfig, number: int, n_workers: int) -> FileConfig:
    """The configuration of one worker.

    Args:
        config: configuration of the node.
        number: number of the worker, from 1.
        n_workers: number of workers of the node.

    Raises:
        ConfigError: a share would be too small to be used.
    """
    shares: dict[str, int] = {}
    for field in _DIVIDED:
        limit = getattr(config, field)
        if limit is not None:
            shares[field] = _part(limit, number, n_workers)
            if limit < n_workers:
                raise ConfigError(
                    field,
                    f"must be at least {n_workers}, is {limit}: {n_workers} workers share it.",
                    "Raise it, or lower server.workers.",
                )
    apps = [
        msgspec.structs.replace(
            app, max_undelivered_bytes=_part(app.max_undelivered_bytes, number, n_workers) or 1
        )
        for app in config.apps
    ]
    share = msgspec.structs.replace(config, apps=apps, **shares)
    try:
        share.check()
    except ConfigError as error:
        raise ConfigError(
            error.field,
            f"of each of {n_workers} workers: {error.rule}",
            f"{error.remedy} It is divided among the workers.".lstrip(),
        ) from None
    return share


def shares_of(config: FileConfig, n_workers: int) -> list[FileConfig]:
    """Those of all workers; the configuration itself if there is only one.

    Raises:
        ConfigError: see :func:`share_of`.
    """
    if n_workers == 1:
        return [config]
    return [share_of(config, number, n_workers) for number in range(1, n_workers + 1)]


def _part(limit: int, number: int, n_workers: int) -> int:
    """The parts of all workers add up to the limit."""
    return limit // n_workers + (number <= limit % n_workers)
