"""Which hub is whose: by the id of an app, by a key, and of a connection.

An app that is served no more is found by nobody, but by those of its clients who have not left yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cachecast.channels.connection import Connection
    from cachecast.channels.hub import Hub

__all__ = ["Directory"]


class Directory:
    """The hubs of a node.

    Attributes:
        hubs: app id -> hub of an app that is served.
        by_key: key -> the hub of its app.
        ending: app id -> hub of an app that is served no more.
    """

    def __init__(self) -> None:
        self.hubs: dict[str, Hub] = {}
        self.by_key: dict[str, Hub] = {}
        self.ending: dict[str, Hub] = {}

    def index(self) -> None:
        """Find hubs by the keys that their apps have now. Never yields; O(keys)."""
        self.by_key = {pair.key: hub for hub in self.hubs.values() for pair in hub.app.key_pairs}

    def of(self, connection: Connection) -> Hub:
        """The hub of a connection that has not left."""
        app_id = connection.session.app.id
        return self.hubs.get(app_id) or self.ending[app_id]

    def find(self, app_id: str) -> Hub | None:
        """The hub of an app, served or ending."""
        return self.hubs.get(app_id) or self.ending.get(app_id)

    def retire(self, hub: Hub) -> None:
        """An app is served no more."""
        self.ending[hub.app.id] = self.hubs.pop(hub.app.id)

    def forget(self, hub: Hub) -> None:
        """Its clients have left."""
        del self.ending[hub.app.id]
