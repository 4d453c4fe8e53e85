"""Which hub is whose, while apps come and go."""

from __future__ import annotations

from collections import deque

from cachecast.broker.directory import Directory
from cachecast.channels.hub import Hub
from tests.harness.lower import make_app

APP = make_app()


def test_an_app_that_is_served_no_more_is_known_to_its_clients_only():
    directory = Directory()
    hub = Hub(APP, deque(), 0.0)
    directory.add(hub)
    directory.index()
    assert directory.by_key == {APP.key: hub}
    assert directory.hubs == directory.known == {APP.id: hub}

    directory.retire(hub)
    directory.index()
    assert directory.by_key == directory.hubs == {}
    assert directory.known == {APP.id: hub}
    assert directory.find(APP.id) is hub

    directory.forget(hub)
    assert directory.known == {}
    assert directory.find(APP.id) is None


def test_an_app_that_came_back_is_not_forgotten_with_the_one_that_went():
    directory = Directory()
    old, new = Hub(APP, deque(), 0.0), Hub(APP, deque(), 0.0)
    directory.add(old)
    directory.retire(old)
    directory.add(new)
    directory.forget(old)
    assert directory.known == directory.hubs == {APP.id: new}
