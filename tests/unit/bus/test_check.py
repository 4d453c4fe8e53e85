"""What a primary is found to be; with real engines in tests/cluster/test_check.py."""

from __future__ import annotations

from cachecast.bus.calls import library_name
from cachecast.bus.check import CheckedPrimary, check_primary
from cachecast.bus_config import BusConfig
from tests.unit.bus.fake_engine import fake_engine


async def test_nobody_there_is_told_apart_from_somebody_who_refuses(tmp_path) -> None:
    config = BusConfig(urls=(f"unix://{tmp_path}/none",))
    (primary,) = config.primaries()

    found = await check_primary(primary, config, None)

    assert not found.is_reached
    assert "cannot be reached" in found.fault


async def test_who_wants_a_password_is_reached_and_says_so() -> None:
    async with fake_engine({b"HELLO": b"-NOAUTH HELLO must be called\r\n"}) as engine:
        config = BusConfig(urls=(f"redis://127.0.0.1:{engine.port}",))
        found = await check_primary(config.primaries()[0], config, None)

    assert found.is_reached
    assert "wants a password" in found.fault


def test_functions_of_another_release_are_not_ours() -> None:
    theirs = CheckedPrimary(name="a", libraries=["cachecast_1_00000000"])
    ours = CheckedPrimary(name="a", libraries=["cachecast_1_00000000", library_name()])

    assert not theirs.has_own_library
    assert ours.has_own_library
