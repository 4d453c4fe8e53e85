"""Error replies: each becomes the type that says what to do."""

from __future__ import annotations

import pytest

from cachecast.bus import faults
from cachecast.bus.faults import LinkError, fault_of
from cachecast.errors import BusError


@pytest.mark.parametrize(
    ("text", "kind", "words"),
    [
        ("NOAUTH Authentication required.", faults.CredentialsError, "bus.password"),
        ("WRONGPASS invalid username-password pair", faults.CredentialsError, "bus.username"),
        (
            "ERR AUTH <password> called without any password configured for the default user.",
            faults.CredentialsError,
            "no password",
        ),
        (
            "NOPERM User u has no permissions to run the 'fcall' command",
            faults.ForbiddenError,
            "run the 'fcall' command",
        ),
        (
            "ERR The user executing the script can't publish to the channel script: cc_hello, ",
            faults.ForbiddenError,
            "&PREFIXcc:*",
        ),
        (
            "ERR ACL failure in script: No permissions to access a channel script: on @u:400.",
            faults.ForbiddenError,
            "access a channel.",
        ),
        ("LOADING Redis is loading the dataset in memory", faults.LoadingError, "appendonly"),
        ("READONLY You can't write against a read only replica.", faults.ReplicaError, "primary"),
        ("MASTERDOWN Link with MASTER is down", faults.ReplicaError, "primary"),
        ("OOM command not allowed when used memory > 'maxmemory'.", faults.FullError, "maxmemory"),
        ("NOREPLICAS Not enough good replicas to write.", faults.NoReplicasError, "min-replicas"),
        ("MISCONF Errors writing to the RDB file", faults.WritesStoppedError, "save"),
        ("BUSY Redis is busy running a script.", faults.BusyError, "script"),
        ("NOSCRIPT No matching script.", faults.MissingFunctionError, "functions"),
        ("ERR Function not found", faults.MissingFunctionError, "functions"),
        ("MOVED 3999 127.0.0.1:6381", faults.UnfitError, "primaries"),
        ("CROSSSLOT Keys in request don't hash to the same slot", faults.UnfitError, "primaries"),
        ("NOPROTO unsupported protocol version", faults.UnfitError, "RESP3"),
        (
            "ERR unknown command 'FCALL', with args beginning with: 's3cret' ",
            faults.UnfitError,
            "FCALL",
        ),
        ("EPOCH say hello again", faults.EpochError, "failed over"),
        ("FENCED say hello again", faults.FencedError, "lease"),
        ("CROWDED 100", faults.CrowdedError, "100 members"),
        ("MISMATCH This and that.", faults.MismatchError, "This and that."),
        ("ERR something else", faults.ReplyError, "something else"),
        ("WRONGTYPE Operation against a key", faults.ReplyError, "WRONGTYPE"),
        ("", faults.ReplyError, ""),
    ],
)
def test_an_error_reply_becomes_its_type(text: str, kind: type[LinkError], words: str) -> None:
    """And a sentence; arguments that the engine quotes are left out."""
    fault = fault_of(text)

    assert type(fault) is kind
    assert words in str(fault)
    assert "s3cret" not in str(fault)
    assert isinstance(fault, BusError)


@pytest.mark.parametrize(("text", "wait_s"), [("GRACE 1500", 1.5), ("GRACE", 0.0)])
def test_a_grace_says_how_long(text: str, wait_s: float) -> None:
    """Seconds, to be waited by whoever called."""
    fault = fault_of(text)

    assert isinstance(fault, faults.GraceError)
    assert fault.wait_s == wait_s


def test_only_what_ends_without_an_answer_may_have_been_done() -> None:
    """The 503 says so for those and not for the others."""
    kinds = {getattr(faults, name) for name in faults.__all__ if name != "fault_of"}

    assert {kind.__name__ for kind in kinds if kind.was_maybe_done} == {
        "LostError", "SilentError", "SlowError", "GarbageError",
    }  # fmt: skip


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    """Whoever adds a class adds it there."""
    named = set(__import__("re").findall(r"\b[A-Z]\w+Error\b", faults.__doc__ or ""))

    assert named == set(faults.__all__) - {"fault_of"}
