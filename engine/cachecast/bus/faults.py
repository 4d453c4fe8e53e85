"""What can be wrong with the engine, told apart by type and said in a sentence with its remedy.

The one idea: whoever talks to the engine gets a reply or an instance of :class:`LinkError`, and
its class alone says what to do. The engine's own words decide the class (the first word of a RESP
error), and are kept where they carry no argument of ours: an error of the engine may quote a
command, and commands carry payloads.

    LinkError
      UnavailableError        there is no link: wait for the next UP
        DownError               not connected at this moment
        UnreachableError        no connection could be made
        LostError               the connection ended: what was asked may have been done
        SilentError             nothing was heard for too long: the same
        SlowError               an answer took too long: the same
        GarbageError            what came is no RESP3
        LoadingError            the engine reads its data set
        BusyError               a script blocks the engine
      BacklogError            our own bound: too much waits for the engine
      SetupError      an operator has to act
        CredentialsError, ForbiddenError, TlsError, ReplicaError, UnfitError, FullError,
        NoReplicasError, WritesStoppedError, MissingFunctionError
      RefusedError            one of our functions said no
        EpochError              say hello again: the engine is not the one that you know
        FencedError             say hello again: your lease ended and your members are gone
        GraceError              wait: nodes are entering again what they know
        CrowdedError            the presence channel is full
        MismatchError           this node and another one must not work together
      ReplyError              any other error reply
"""

from __future__ import annotations

from typing import Final

from cachecast.errors import BusError

__all__ = [
    "BacklogError",
    "BusyError",
    "CredentialsError",
    "CrowdedError",
    "DownError",
    "EpochError",
    "FencedError",
    "ForbiddenError",
    "FullError",
    "GarbageError",
    "GraceError",
    "LinkError",
    "LoadingError",
    "LostError",
    "MismatchError",
    "MissingFunctionError",
    "NoReplicasError",
    "RefusedError",
    "ReplicaError",
    "ReplyError",
    "SetupError",
    "SilentError",
    "SlowError",
    "TlsError",
    "UnavailableError",
    "UnfitError",
    "UnreachableError",
    "WritesStoppedError",
    "fault_of",
]


class LinkError(BusError):
    """Base of everything that can go wrong between a node and the engine."""


class UnavailableError(LinkError):
    """There is no usable link; another attempt is under way or will be."""


class DownError(UnavailableError):
    """The link is down at this moment, so nothing was sent."""


class UnreachableError(UnavailableError):
    """No connection could be made."""


class LostError(UnavailableError):
    """The connection ended before the answer came."""

    was_maybe_done = True


class SilentError(LostError):
    """Nothing was heard from the engine for longer than ``silence_s``."""


class SlowError(LostError):
    """The engine is there, but an answer took longer than ``reply_limit_s``."""


class GarbageError(LostError):
    """What came is no RESP3: another kind of server, or a broken one."""


class LoadingError(UnavailableError):
    """The engine is reading a data set, which a memory-only one never has to."""


class BusyError(UnavailableError):
    """A script, not one of ours, keeps the engine from answering."""


class BacklogError(LinkError):
    """Our own bound: more waits for the engine than may.

    Attributes:
        limit: the allowed value.
        unit: unit of that value, ``calls`` or ``bytes``.
    """

    def __init__(self, limit: int, unit: str) -> None:
        super().__init__(
            f"The engine is behind: {limit} {unit} wait for it already. The event was not taken."
        )
        self.limit = limit
        self.unit = unit


class SetupError(LinkError):
    """An operator has to act; coming back does not help."""


class CredentialsError(SetupError):
    """User or password are wrong, or missing."""


class ForbiddenError(SetupError):
    """The ACL user may not do what a node has to."""


class TlsError(SetupError):
    """The TLS handshake failed."""


class ReplicaError(SetupError):
    """The address is a replica's, which takes no writes."""


class UnfitError(SetupError):
    """Too old, a cluster member, or without functions."""


class FullError(SetupError):
    """The engine has reached its ``maxmemory``."""


class NoReplicasError(SetupError):
    """Fewer replicas follow than ``min-replicas-to-write`` asks for."""


class WritesStoppedError(SetupError):
    """The engine refuses writes because it could not save: so it tries to."""


class MissingFunctionError(SetupError):
    """The functions are not, or no longer, in the engine; hello loads them."""


class RefusedError(LinkError):
    """One of our functions refused; nothing was executed."""


class EpochError(RefusedError):
    """The engine is not the one the node said hello to, or its clock was set back."""


class FencedError(RefusedError):
    """The node's lease ended, and its members were announced gone."""


class GraceError(RefusedError):
    """A new epoch has begun, and nodes are entering again what they know.

    Attributes:
        wait_s: seconds after which the call may be made again.
    """

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class CrowdedError(RefusedError):
    """The presence channel has as many members as it may."""


class MismatchError(RefusedError, SetupError):
    """This node and another one must not work together; the message says in what they differ."""


class ReplyError(LinkError):
    """Any other error reply of the engine."""


#: First word of an error reply -> the class, and the sentence. ``{}`` is what follows that word.
_BY_CODE: Final[dict[str, tuple[type[LinkError], str]]] = {
    "NOAUTH": (
        CredentialsError,
        "The engine wants a password. Set bus.password, and bus.username for an ACL user.",
    ),
    "WRONGPASS": (
        CredentialsError,
        "The engine refuses user or password. Check bus.username and bus.password.",
    ),
    "NOPERM": (
        ForbiddenError,
        (
            "The engine's ACL forbids the node a command, key or topic: {} The user needs "
            "~PREFIXcc:* &PREFIXcc:* +@all -@dangerous +info +config|get."
        ),
    ),
    "LOADING": (
        LoadingError,
        (
            "The engine is loading a data set from a file. One that keeps values in memory "
            'only has none: set save "" and appendonly no.'
        ),
    ),
    "READONLY": (
        ReplicaError,
        (
            "The engine is a replica and takes no writes. Give the primary's address, or Sentinels "
            "with bus.sentinel, which know it."
        ),
    ),
    "MASTERDOWN": (
        ReplicaError,
        "The engine is a replica that has lost its primary. Give the primary's address.",
    ),
    "OOM": (
        FullError,
        (
            "The engine's memory is full: used memory is above maxmemory. Raise maxmemory, or "
            "lower max_cache_bytes of the apps."
        ),
    ),
    "NOREPLICAS": (
        NoReplicasError,
        "The engine refuses writes because too few replicas follow it (min-replicas-to-write).",
    ),
    "MISCONF": (
        WritesStoppedError,
        'The engine refuses writes because saving to disk failed. It must not save: set save "".',
    ),
    "BUSY": (
        BusyError,
        "A script blocks the engine. It is none of this broker's, which are done in milliseconds.",
    ),
    "NOSCRIPT": (
        MissingFunctionError,
        "The engine has lost the broker's functions. The next hello loads them.",
    ),
    "MOVED": (
        UnfitError,
        (
            "The engine is a member of a Redis Cluster, whose slots break batches. Use one or "
            "several independent primaries."
        ),
    ),
    "NOPROTO": (UnfitError, "The engine does not speak RESP3. Redis 7.0 or any Valkey does."),
    "EPOCH": (EpochError, "The engine was restarted, failed over, flushed, or its clock set back."),
    "FENCED": (FencedError, "The node's lease ended before it was renewed."),
    "CROWDED": (CrowdedError, "The channel has {} members, as many as it may."),
    "MISMATCH": (MismatchError, "{}"),
}


def fault_of(text: str) -> LinkError:
    """Translate an error reply.

    Args:
        text: text of the error as the engine wrote it, without the leading ``-``.
    """
    code, _, rest = text.partition(" ")
    if code == "GRACE":
        wait_s = int(rest) / 1000 if rest.isdecimal() else 0.0
        return GraceError("A new epoch has begun; nodes are entering what they know.", wait_s)
    if code in _BY_CODE:
        kind, sentence = _BY_CODE[code]
        if code == "NOPERM":
            # It ends in the name of what was refused, of which a key may tell a channel: kept, as
            # an operator cannot do without it, but short.
            rest = rest.split(" has no permissions to ")[-1][:120].rstrip(". ") + "."
        return kind(sentence.format(rest))
    if code == "CROSSSLOT":
        return UnfitError(_BY_CODE["MOVED"][1])
    if code == "ERR":
        return _plain_error(rest)
    return ReplyError(f"The engine answered with an error: {text[:120]}")


def _plain_error(rest: str) -> LinkError:
    if rest.startswith("Function not found"):
        return MissingFunctionError(_BY_CODE["NOSCRIPT"][1])
    if rest.startswith(("The user executing the script", "ACL failure in script")):
        # What a function may not do is said in other words, and 7.0 has others than Valkey.
        what = rest.removeprefix("ACL failure in script: ").partition(" script: ")[0]
        what = what.rstrip(". ")[:120] + "."
        return ForbiddenError(_BY_CODE["NOPERM"][1].format(what))
    if rest.startswith("AUTH <password> called without any password"):
        return CredentialsError(
            "The engine has no password, but bus.password is set. Remove it, or set requirepass "
            "in the engine."
        )
    if rest.startswith(("unknown command", "unknown subcommand", "Unknown subcommand")):
        # What follows quotes arguments.
        name = rest.split("'")[1] if rest.count("'") > 1 else "a command"
        return UnfitError(
            f"The engine does not know {name[:40]}: too old, or the command was renamed. "
            "Redis 7.0 or any Valkey is needed."
        )
    return ReplyError(f"The engine answered with an error: {rest[:120]}")
