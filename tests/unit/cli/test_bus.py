"""``cachecast bus check``: what is printed of what was found, and with which exit code it ends."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from cachecast.bus.check import CheckedPrimary
from cachecast.bus.seal import Seal
from cachecast.bus_config import read_keys
from cachecast.cli import cachecast
from cachecast.cli.bus import FINE, REFUSED, UNREACHED
from cachecast.errors import ConfigError

KEY = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"

FOUND = {
    "name": "10.0.0.5:6379/0",
    "is_reached": True,
    "product": "valkey",
    "version": "9.1.2",
    "epoch": 1795747419712972,
}


def run(monkeypatch: pytest.MonkeyPatch, *found: CheckedPrimary, keys: str = "") -> tuple[int, str]:
    async def check_all(config: object) -> list[CheckedPrimary]:
        del config
        return list(found)

    monkeypatch.setattr(sys.modules["cachecast.cli.bus"], "_check_all", check_all)
    result = CliRunner().invoke(
        cachecast,
        ["bus", "check", "--bus", "redis://10.0.0.5"],
        env={"CACHECAST_BUS_SEAL_KEY": keys or None},
    )
    assert max(len(line) for line in result.output.splitlines()) <= 80
    return result.exit_code, " ".join(result.output.split())


def test_the_worst_of_several_primaries_is_the_exit_code(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = CheckedPrimary(**FOUND)
    refused = CheckedPrimary(**FOUND, fault="The engine is a replica and takes no writes.")
    gone = CheckedPrimary(name="b", fault="The engine at b cannot be reached.")

    assert run(monkeypatch, fine)[0] == FINE
    assert run(monkeypatch, fine, refused)[0] == REFUSED
    assert run(monkeypatch, refused, gone, fine)[0] == UNREACHED


def test_nodes_that_seal_otherwise_are_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    others = CheckedPrimary(**FOUND, nodes={"a1": 2.5}, seals={"a1": ["9904e340ec1fdf56"]})

    code, text = run(monkeypatch, others)
    assert code == REFUSED
    assert "are none here and 9904e340ec1fdf56 there" in text
    assert "the same keys" in text
    code, text = run(monkeypatch, others, keys=KEY)
    assert code == REFUSED
    assert KEY not in text


def test_what_may_leave_the_memory_is_accepted_if_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = CheckedPrimary(**FOUND, findings=["The engine: save is '60 1': CONFIG SET save \"\""])

    assert run(monkeypatch, found)[0] == REFUSED
    code, text = run(monkeypatch, found, keys=KEY)
    assert code == FINE
    assert "started all the same" in text


def test_many_nodes_do_not_fill_the_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {f"{number:012x}": 2.0 for number in range(40)}
    code, text = run(monkeypatch, CheckedPrimary(**FOUND, nodes=nodes))
    assert code == FINE
    assert "40: 000000000000" in text
    assert "and 37 more" in text


def test_a_node_that_is_alone_has_nothing_to_check() -> None:
    result = CliRunner().invoke(cachecast, ["bus", "check"])
    assert isinstance(result.exception, ConfigError)
    assert "names no engine" in str(result.exception)


def test_each_must_read_what_the_other_seals_with(monkeypatch: pytest.MonkeyPatch) -> None:
    """During a rotation lists differ: that is fine as long as both hold the other's first."""
    new = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"
    old_print, new_print = Seal(read_keys((KEY, new))).fingerprints

    def among(*its: str) -> CheckedPrimary:
        return CheckedPrimary(**FOUND, nodes={"a1": 2.0}, seals={"a1": list(its)})

    assert run(monkeypatch, among(old_print, new_print), keys=f"{new} {KEY}")[0] == FINE
    assert run(monkeypatch, among(old_print), keys=f"{KEY} {new}")[0] == FINE
    assert run(monkeypatch, among(old_print), keys=f"{new} {KEY}")[0] == REFUSED
    assert run(monkeypatch, among(), keys=KEY)[0] == REFUSED
    assert run(monkeypatch, among())[0] == FINE
