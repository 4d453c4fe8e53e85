"""Which hub is whose: by the id of an app, and by a key.

An app that is served no more is found by nobody, but by those of its clients who have not left yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachecast.channels.hub import Hub

__all__ = ["Directory"]


class Directory:
    """The hubs of a node.

    Attributes:
        hubs: app id -> hub of an app that is served.
        by_key: key -> the hub of its app.
        known: app id -> hub of an app that is served, or was and still has clients.
    """

    def __init__(self) -> None:
        self.hubs: dict[str, Hub] = {}
        self.by_key: dict[str, Hub] = {}
        self.known: dict[str, Hub] = {}

    def add(self, hub: Hub) -> None:
        """Serve an app; :meth:`index` has to follow."""
        self.hubs[hub.app.id] = self.known[hub.app.id] = hub

    def index(self) -> None:
        """Find hubs by the keys that their apps have now. Never yields; O(keys)."""
        self.by_key = {pair.key: hub for hub in self.hubs.values() for pair in hub.app.key_pairs}

    def find(self, app_id: str) -> Hub | None:
        """The hub of an app, as its clients know it."""
        return self.known.get(app_id)

    def retire(self, hub: Hub) -> None:
        """An app is served no more; :meth:`index` has to follow."""
        del self.hubs[hub.app.id]

    def forget(self, hub: Hub) -> None:
        """Its clients have left. Its id may be another one's by now."""
        if self.known[hub.app.id] is hub:
            del self.known[hub.app.id]
