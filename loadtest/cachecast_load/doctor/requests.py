"""Requests of the HTTP API: batches, queries, how much one may carry, connections that are kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from cachecast_load.doctor.case import DATA, Case
from cachecast_load.doctor.channels import channel_of, is_in, listed
from cachecast_load.doctor.findings import Finding, absent, note, works, wrong
from cachecast_load.doctor.looks import describe, is_page, read_json, status_of

_BODY_BYTES = 10_240


def queries(case: Case) -> Iterator[Finding]:
    """Publish a batch, and ask for channels, one channel and the users of one."""
    socket, api = case.socket, case.api
    assert api is not None
    batch = {"batch": [{"channel": f"{case.mark}-batch", "name": "doctor", "data": DATA}] * 2}
    case.published += 2
    answer = case.ask(api, "POST", case.path("batch_events"), json.dumps(batch).encode())
    if status_of(answer) == 200:
        yield works("batch", "Several events can be published in one request (batch).")
    else:
        yield absent("batch", f"Batches of events are refused: {describe(answer)}.")
    presence = channel_of(case, "presence-")
    if socket is None or socket.main is None or not is_in(socket.main, presence):
        return
    asked: tuple[tuple[str, str, dict[str, str], Callable[[dict[str, Any]], bool]], ...] = (
        (
            "the list of channels",
            case.path("channels"),
            {"filter_by_prefix": "presence-", "info": "user_count"},
            lambda told: presence in (told.get("channels") or {}),
        ),
        (
            "one channel",
            case.path("channels", presence),
            {"info": "user_count"},
            lambda told: told.get("occupied") is True,
        ),
        (
            "the users of a presence channel",
            case.path("channels", presence, "users"),
            {},
            lambda told: case.mark in [str(user.get("id")) for user in told.get("users") or ()],
        ),
    )
    lacking: list[str] = []
    for what, path, query, is_right in asked:
        told = read_json(case.ask(api, "GET", path, query=query))
        if not is_right(told):
            lacking.append(what)
    if lacking:
        yield absent(
            "queries",
            f"The HTTP API does not tell {listed(lacking)}, or not rightly.",
            lacking=lacking,
        )
    else:
        yield works(
            "queries",
            "The HTTP API tells the channels, one channel, and the users of a presence channel.",
        )


def limits(case: Case) -> Iterator[Finding]:
    """Publish as much as Pusher allows, and see whether connections are kept."""
    door = case.api
    assert door is not None
    channel = f"{case.mark}-large"
    answer = case.publish(door, [channel], "x" * _BODY_BYTES)
    batch = {"batch": [{"channel": channel, "name": "doctor", "data": "x" * 10_000}] * 10}
    case.published += 10
    large = case.ask(door, "POST", case.path("batch_events"), json.dumps(batch).encode())
    refused = []
    if status_of(answer) != 200:
        refused.append(("an event of 10 KB", answer))
    elif (
        status_of(large) == 413 or not large.status
    ):  # other refusals mean that there are no batches
        refused.append(("a batch of ten events of 10 KB", large))
    for size, one in refused:
        if is_page(one) or "nginx" in one.headers.get("server", "") or not one.body:
            remedy = (
                "A proxy's limit is too low. nginx: client_max_body_size 1m; IIS:"
                " maxAllowedContentLength."
            )
        else:
            remedy = "The server's own limit is lower than Pusher's: raise it (event, batch, body)."
        yield wrong(
            "limit.body",
            f"{door.url} refuses {size}: {describe(one)}. Pusher allows it.",
            remedy,
            status=one.status,
        )
    if not refused:
        and_batch = " and a batch of ten such events are" if status_of(large) == 200 else " is"
        yield works("limits", f"An event of 10 KB{and_batch} accepted.")
    again = case.ask(door, "GET", case.path("channels"))
    if again.is_last and again.status:
        old = " (and speaks HTTP/1.0)" if again.version == "1.0" else ""
        yield note(
            "api.closes",
            f"{door.url} closes the connection after each answer{old}: every publish pays for a"
            " new one.",
            "Let the proxy keep connections of clients (nginx: keepalive_timeout 65s); some"
            " servers never do.",
        )
