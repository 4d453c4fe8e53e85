"""Several targets and API URLs: does what is published at one reach the others?"""

from __future__ import annotations

from collections.abc import Iterator

from cachecast_load.doctor.case import Case, Door
from cachecast_load.doctor.features import subscribe
from cachecast_load.doctor.findings import Finding, note, works, wrong
from cachecast_load.doctor.lines import Peer
from cachecast_load.doctor.looks import describe, status_of

_WAIT_S = 3.0


def several(case: Case) -> Iterator[Finding]:
    """Publish one event at every API and wait for each at every target."""
    sockets = [door for door in case.sockets if door.is_usable]
    apis = [door for door in case.apis if door.is_usable]
    if len(sockets) < 2 and len(apis) < 2:
        return
    yield from _differing(sockets)
    channel = f"{case.mark}-across"
    listening = [(door, case.connect(door)) for door in sockets]
    for _, peer in listening:
        subscribe(case, peer, channel)
    for _, peer in listening:
        peer.expect(lambda said: said.channel == channel, case.within(_WAIT_S))
    for api in apis:
        answer = case.publish(api, [channel], f"by {api.url}")
        if status_of(answer) != 200:
            yield wrong(
                "publish",
                f"Publishing at {api.url} is refused: {describe(answer)}.",
                "Look into the server's log for the reason.",
            )
    listening[0][1].wait(
        lambda: all(len(_heard(peer)) == len(apis) for _, peer in listening), case.within(_WAIT_S)
    )
    lost = [
        (api, door)
        for api in apis
        for door, peer in listening
        if f"by {api.url}" not in _heard(peer)
    ]
    for _, peer in listening:
        peer.close()
    if not lost:
        yield works(
            "several",
            f"Events cross between all of {len(sockets)} targets and {len(apis)} API URLs.",
        )
    for api, door in lost:
        yield wrong(
            "several.apart",
            f"What is published at {api.url} does not reach clients of {door.url}.",
            "They are not nodes of one cluster: join them (Cachecast: --bus; soketi and Reverb:"
            " Redis), or name targets of one deployment only.",
        )


def _differing(sockets: list[Door]) -> Iterator[Finding]:
    told = {door.url: door.main.activity_timeout_s for door in sockets if door.main}
    if len(set(told.values())) > 1:
        values = ", ".join(f"{timeout_s} s at {url}" for url, timeout_s in told.items())
        yield note(
            "several.timeouts",
            f"The targets tell different activity timeouts: {values}.",
            "Configure all nodes alike.",
        )


def _heard(peer: Peer) -> set[str]:
    return {str(said.data) for said in peer.heard if said.event == "doctor"}
