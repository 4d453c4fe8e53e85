"""One server of each kind for all tests of a module; each test takes a prefix of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.cluster.engines import ENGINES, Server, serving

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module", params=ENGINES)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A memory-only engine."""
    with serving(request.param) as server:
        yield server
