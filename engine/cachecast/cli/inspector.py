"""The inspector's token: the operator's, or one that the node makes and its successors keep."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

from cachecast.server.inspector import InspectorTerms

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from cachecast.config import ServerConfig

__all__ = ["inspector_terms", "private_terms"]

#: Variable by which the process that takes over in an upgrade gets the token that was printed; not
#: one of the configuration, which would look changed by it.
PRIVATE_TOKEN: Final = "CACHECAST_MADE_PRIVATE_TOKEN"  # noqa: S105 - a name
MADE_TOKEN: Final = "CACHECAST_MADE_INSPECTOR_TOKEN"  # noqa: S105 - a name


def inspector_terms(
    options: ServerConfig, environ: MutableMapping[str, str]
) -> InspectorTerms | None:
    """How people look into a node; None where they may not.

    Args:
        options: the node's ``[server]``.
        environ: environment of this process, and of the one that takes over from it; a token that
            is made here is kept there.
    """
    if not options.has_inspector:
        return None
    token = options.inspector_token or environ.setdefault(MADE_TOKEN, secrets.token_urlsafe(24))
    hosts = {name.lower() for name in options.inspector_hosts}
    return InspectorTerms(token, frozenset(hosts), options.inspector_shows_payloads)


def private_terms(options: ServerConfig, environ: MutableMapping[str, str]) -> InspectorTerms:
    """How a parent alone looks into its workers, for those who watch by its control socket.

    Args:
        options: the node's ``[server]``.
        environ: as for :func:`inspector_terms`: workers are asked by the program that it becomes.
    """
    shows = options.inspector_shows_payloads
    token = environ.setdefault(PRIVATE_TOKEN, secrets.token_urlsafe(24))
    return InspectorTerms(token, shows_payloads=shows, keeps_figures=False)
