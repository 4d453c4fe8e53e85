"""Rules for every test: bounded in real time, and as thorough as the occasion asks.

An async test runs inside ``trio.fail_after``, so that one which hangs fails by itself and the
next one still runs; pytest-timeout is only the backstop behind it. Tests under a virtual clock
are exempt: for them a minute passes in no time.
"""

from __future__ import annotations

import functools
import inspect
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import structlog
import trio
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

#: Real seconds that an async test may take. Those that pass take one or two; a shared machine may
#: stand still for several, at any moment, and that must not fail a test.
LIMIT_S = 60.0

# A shell that starts something in the background, and nohup, has it ignore interrupts, and its
# children inherit that: then a test would wait in vain for the end of a program that it interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("dev", max_examples=50, deadline=None)
# The gate judges a change, so it tries the same examples each time; new ones are for the night.
settings.register_profile("ci", max_examples=200, deadline=None, print_blob=True, derandomize=True)
settings.register_profile("nightly", max_examples=5_000, deadline=None, print_blob=True)
settings.load_profile(
    os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") == "true" else "dev")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bound every coroutine test that lives in real time."""
    for item in items:
        test: Any = getattr(item, "obj", None)
        if test is None or any("clock" in name for name in getattr(item, "fixturenames", ())):
            continue
        if hasattr(test, "hypothesis"):
            inner = test.hypothesis.inner_test
            if inspect.iscoroutinefunction(inner):
                test.hypothesis.inner_test = _bounded(inner)
        elif inspect.iscoroutinefunction(test):
            item.obj = _bounded(test)  # type: ignore[attr-defined]  # a Function has it


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Nobody logs as the test before has configured it: all of it is the process's."""
    structlog.reset_defaults()


def _bounded(test: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
    if hasattr(test, "is_bounded"):  # parametrized cases share one function
        return test

    @functools.wraps(test)
    async def bounded(*args: Any, **kwargs: Any) -> None:
        with trio.fail_after(LIMIT_S):
            await test(*args, **kwargs)

    bounded.is_bounded = True  # type: ignore[attr-defined]  # a mark on our own wrapper
    return bounded
