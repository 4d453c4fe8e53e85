"""Which hub is whose, while apps come and go."""

from __future__ import annotations

from collections import deque

import pytest

from cachecast.broker.directory import Directory
from cachecast.channels.hub import Hub
from tests.harness.lower import Client, make_app


def test_an_app_that_is_served_no_more_is_found_by_its_clients_only():
    directory = Directory()
    client = Client()
    app = make_app()
    hub = directory.hubs[app.id] = Hub(app, deque(), 0.0)
    directory.index()
    assert directory.by_key[app.key] is hub
    assert directory.of(client.connection) is directory.find(app.id) is hub

    directory.retire(hub)
    directory.index()
    assert not directory.by_key
    assert not directory.hubs
    assert directory.of(client.connection) is directory.find(app.id) is hub

    directory.forget(hub)
    assert directory.find(app.id) is None
    with pytest.raises(KeyError):
        directory.of(client.connection)


def test_an_app_that_came_back_is_found_before_the_one_that_goes():
    directory = Directory()
    app = make_app()
    old, new = Hub(app, deque(), 0.0), Hub(app, deque(), 0.0)
    directory.hubs[app.id] = old
    directory.retire(old)
    directory.hubs[app.id] = new
    assert directory.find(app.id) is new
