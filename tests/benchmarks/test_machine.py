"""What a result says of where it was measured."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from cachecast_bench import machine


@pytest.mark.slow
def test_the_commit_of_another_project_is_not_taken_for_ours(tmp_path):
    """An environment often lies inside the checkout of whoever uses it."""
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.test"]
    for arguments in (["init", "-q"], [*identity, "commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    installed = tmp_path / ".venv" / "cachecast_bench"
    installed.mkdir(parents=True)
    shutil.copy(machine.__file__, installed)
    (installed / "__init__.py").touch()
    code = "from cachecast_bench import machine; print(machine.commit())"

    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/",
        env=os.environ | {"PYTHONPATH": str(installed.parent)},
    )  # fmt: skip

    assert done.stdout == "unknown\n"
