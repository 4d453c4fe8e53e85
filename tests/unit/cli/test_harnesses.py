"""``cachecast load`` and ``cachecast bench``: other packages, each in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import cachecast

pytestmark = pytest.mark.slow

HARNESSES = ["load", "bench"]
#: Stands in for a module that this environment has, as if it had not been installed.
LOAD = [
    "run",
    "fanout",
    "--target",
    "ws://127.0.0.1:1",
    "--app-id",
    "1",
    "--key",
    "k",
    "--secret",
    "s",
]
ABSENT = "raise ModuleNotFoundError(f'No module named {__name__!r}', name=__name__)\n"


def run(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "cachecast", *arguments],
        capture_output=True, text=True, check=False, cwd=cwd, timeout=60,
        env=os.environ | {"COLUMNS": "100"} | environment,
    )  # fmt: skip


@pytest.mark.parametrize("harness", HARNESSES)
@pytest.mark.parametrize("start", ["command", "module"])
def test_help_and_usage_name_what_users_type(tmp_path, harness, start):
    """However it was started: also the module is the installed command."""
    if start == "command":
        done = run(harness, "run", "--help", cwd=tmp_path)
    else:
        command = [sys.executable, "-m", f"cachecast_{harness}", "run", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"Usage: cachecast {harness} run [OPTIONS]")


@pytest.mark.parametrize("arguments", [[], ["load"], ["bench"]])
def test_all_three_tell_the_version_of_the_distribution(tmp_path, arguments):
    """They are released together."""
    done = run(*arguments, "--version", cwd=tmp_path)

    name = " ".join(["cachecast", *arguments])
    assert (done.returncode, done.stdout) == (0, f"{name}, version {cachecast.__version__}\n")


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["load", "run", "nonsense"], 3, "nonsense"),
        (["load", "run", "--nonsense"], 3, "Usage: cachecast load run"),
        (["bench", "run", "nonsense"], 3, "Usage: cachecast bench run"),
        (["bench", "run", "--", "--quick"], 3, "no scenario is called '--quick'"),
    ],
)
def test_arguments_reach_it_untouched_and_its_exit_code_comes_back(
    tmp_path, arguments, code, words
):
    """Its own codes, not those of `cachecast`."""
    done = run(*arguments, cwd=tmp_path)

    assert done.returncode == code
    assert words in done.stderr


@pytest.mark.parametrize(
    ("harness", "module"), [("load", "locust"), ("load", "websockets"), ("bench", "psutil")]
)
def test_without_its_extra_it_says_in_a_sentence_what_to_install(tmp_path, harness, module):
    """Whichever module of the extra is the first to be missed."""
    (tmp_path / f"{module}.py").write_text(ABSENT)
    arguments = {"load": LOAD, "bench": ["run", "fanout", "--quick"]}[harness]

    done = run(harness, *arguments, cwd="/", PYTHONPATH=str(tmp_path))

    assert done.returncode == 3
    assert done.stderr == (
        f"cachecast {harness} needs {module}, which is not installed: "
        f'pip install "cachecast[{harness}]"\n'
    )


@pytest.mark.parametrize("harness", HARNESSES)
def test_files_of_the_folder_it_is_started_in_are_not_taken_for_modules(tmp_path, harness):
    """A project may have a queue.py of its own, and even an engine.py."""
    for name in ("queue", "click", "engine", f"cachecast_{harness}"):
        (tmp_path / f"{name}.py").write_text(f"raise SystemExit('this is the {name}.py of others')")
    command = "import sys; sys.path.remove(''); import cachecast.cli as c; c.main()"

    done = subprocess.run(
        [sys.executable, "-c", command, harness, "--help"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip

    assert "this is the" not in done.stderr + done.stdout
    assert done.returncode == 0, done.stderr


def test_it_takes_the_place_of_the_process(tmp_path):
    """Signals go to whoever was started, and nobody stays behind in between."""
    (tmp_path / "locust.py").write_text(
        "import os, signal, sys\n"
        "print(os.getpid(), flush=True)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_DFL)\n"
        "signal.pause()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "cachecast", "load", *LOAD],
        stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(tmp_path)}, cwd="/",
    )  # fmt: skip
    with process:
        assert int(process.stdout.readline()) == process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == -signal.SIGTERM


def complete(line, *, folder, script="cachecast", **environment):
    """What a shell hears when Tab is pressed at the end of `line`."""
    words = line.split(" ")
    told = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [Path(sys.executable).parent / script],
        capture_output=True, text=True, check=False, cwd=folder, timeout=60,
        env=os.environ | {"_CACHECAST_COMPLETE": "bash_complete"} | told | environment,
    )  # fmt: skip
    assert done.stderr == ""
    return [answer.rpartition(",")[2] for answer in done.stdout.splitlines()]


def test_the_shell_completes_both_and_what_belongs_to_them(tmp_path):
    """Commands, options and, where there are any, values."""
    assert complete("cachecast lo", folder=tmp_path) == ["load"]
    assert complete("cachecast load ", folder=tmp_path)[:2] == ["compare", "doctor"]
    assert complete("cachecast load run --tar", folder=tmp_path) == ["--target"]
    assert complete("cachecast load run --target ws://h --api", folder=tmp_path) == ["--api-url"]
    assert complete("cachecast bench run fanout --qu", folder=tmp_path) == ["--quick"]


@pytest.mark.parametrize("module", ["gevent", "locust", "matplotlib"])
def test_completing_loads_nothing_heavy(tmp_path, module):
    """Somebody waits with a finger on the key."""
    (tmp_path / f"{module}.py").write_text("raise SystemExit('loaded')")

    for line in ("cachecast load ru", "cachecast bench ru"):
        assert complete(line, folder=tmp_path, PYTHONPATH=str(tmp_path)) == ["run"]


def test_without_its_extra_completing_is_silent(tmp_path):
    """A sentence in the middle of a command line that is being typed would help nobody."""
    (tmp_path / "websockets.py").write_text(ABSENT)

    assert complete("cachecast load ru", folder=tmp_path, PYTHONPATH=str(tmp_path)) == []
