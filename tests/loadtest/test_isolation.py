"""Walls: the harness shares no code with its target, and Locust never enters the test process."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cachecast_load

FOLDER = Path(cachecast_load.__file__).parent
MODULES = sorted(
    ".".join(("cachecast_load", *path.relative_to(FOLDER).with_suffix("").parts))
    for path in FOLDER.rglob("*.py")
)
KNOW_LOCUST = {module for module in MODULES if module.startswith("cachecast_load.swarm.")}


def imports(module):
    path = FOLDER.joinpath(*module.split(".")[1:]).with_suffix(".py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_the_engine_or_trio(module):
    assert not set(imports(module)) & {
        "cachecast",
        "cachecast_bench",
        "trio",
        "trio_websocket",
        "asyncio",
    }


@pytest.mark.parametrize("module", sorted(set(MODULES) - KNOW_LOCUST))
def test_only_the_bridge_knows_locust(module):
    lazily = ("cachecast_load.net.reactor", "cachecast_load.doctor.reach")
    allowed = {"gevent"} if module in lazily else set()
    assert not set(imports(module)) & {"locust", "gevent", "flask"} - allowed


def test_everything_but_the_bridge_is_importable_without_patching_the_process():
    names = [m for m in MODULES if m not in KNOW_LOCUST | {"cachecast_load.__main__"}]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}: importlib.import_module(name.removesuffix('.__init__'))\n"
        "assert not {'gevent', 'locust'} & set(sys.modules), 'patched'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=FOLDER.parent)
