"""What can be wrong with the engine, told apart by type and said in a sentence with its remedy.

The one idea: whoever talks to the engine gets a reply or an instance of :class:`EngineFault`, and
its class alone says what to do. The engine's own words decide the class (the first word of a RESP
error), and are kept where they carry no argument of ours: an error of the engine may quote a
command, and commands carry payloads.

    EngineFault
      UnavailableFault        there is no link: wait for the next UP
        DownFault               not connected at this moment
        UnreachableFault        no connection could be made
        LostFault               the connection ended: what was asked may have been done
        SilentFault             nothing was heard for too long: the same
        SlowFault               an answer took too long: the same
        GarbageFault            what came is no RESP3
        LoadingFault            the engine reads its data set
        BusyFault               a script blocks the engine
      BacklogFault            our own bound: too much waits for the engine
      ConfigurationFault      an operator has to act
        CredentialsFault, ForbiddenFault, TlsFault, ReplicaFault, UnfitFault, MemoryFault,
        NoReplicasFault, WritesStoppedFault, MissingFunctionFault
      RefusedFault            one of our functions said no
        EpochFault              say hello again: the engine is not the one that you know
        FencedFault             say hello again: your lease ended and your members are gone
        GraceFault              wait: nodes are entering again what they know
        CrowdedFault            the presence channel is full
        MismatchFault           this node and another one must not work together
      ReplyFault              any other error reply
"""

from __future__ import annotations

from typing import Final

from cachecast.errors import BusError

__all__ = [
    "BacklogFault",
    "BusyFault",
    "ConfigurationFault",
    "CredentialsFault",
    "CrowdedFault",
    "DownFault",
    "EngineFault",
    "EpochFault",
    "FencedFault",
    "ForbiddenFault",
    "GarbageFault",
    "GraceFault",
    "LoadingFault",
    "LostFault",
    "MemoryFault",
    "MismatchFault",
    "MissingFunctionFault",
    "NoReplicasFault",
    "RefusedFault",
    "ReplicaFault",
    "ReplyFault",
    "SilentFault",
    "SlowFault",
    "TlsFault",
    "UnavailableFault",
    "UnfitFault",
    "UnreachableFault",
    "WritesStoppedFault",
    "fault_of",
]


class EngineFault(BusError):
    """Base of everything that can go wrong between a node and the engine.

    Attributes:
        was_maybe_done: whether the call may have been carried out although it has no answer.
    """

    was_maybe_done: bool = False


class UnavailableFault(EngineFault):
    """There is no usable link; another attempt is under way or will be."""


class DownFault(UnavailableFault):
    """The link is down at this moment, so nothing was sent."""


class UnreachableFault(UnavailableFault):
    """No connection could be made."""


class LostFault(UnavailableFault):
    """The connection ended before the answer came."""

    was_maybe_done = True


class SilentFault(LostFault):
    """Nothing was heard from the engine for longer than ``silence_s``."""


class SlowFault(LostFault):
    """The engine is there, but an answer took longer than ``reply_limit_s``."""


class GarbageFault(LostFault):
    """What came is no RESP3: another kind of server, or a broken one."""


class LoadingFault(UnavailableFault):
    """The engine is reading a data set, which a memory-only one never has to."""


class BusyFault(UnavailableFault):
    """A script, not one of ours, keeps the engine from answering."""


class BacklogFault(EngineFault):
    """Our own bound: more waits for the engine than may.

    Attributes:
        limit: the allowed value.
        unit: of it, ``calls`` or ``bytes``.
    """

    def __init__(self, limit: int, unit: str) -> None:
        super().__init__(
            f"The engine is behind: {limit} {unit} wait for it already. The event was not taken."
        )
        self.limit = limit
        self.unit = unit


class ConfigurationFault(EngineFault):
    """An operator has to act; coming back does not help."""


class CredentialsFault(ConfigurationFault):
    """User or password are wrong, or missing."""


class ForbiddenFault(ConfigurationFault):
    """The ACL user may not do what a node has to."""


class TlsFault(ConfigurationFault):
    """The TLS handshake failed."""


class ReplicaFault(ConfigurationFault):
    """The address is a replica's, which takes no writes."""


class UnfitFault(ConfigurationFault):
    """Too old, a cluster member, or without functions."""


class MemoryFault(ConfigurationFault):
    """The engine has reached its ``maxmemory``."""


class NoReplicasFault(ConfigurationFault):
    """Fewer replicas follow than ``min-replicas-to-write`` asks for."""


class WritesStoppedFault(ConfigurationFault):
    """The engine refuses writes because it could not save: so it tries to."""


class MissingFunctionFault(ConfigurationFault):
    """The functions are not, or no longer, in the engine; hello loads them."""


class RefusedFault(EngineFault):
    """One of our functions refused; nothing was executed."""


class EpochFault(RefusedFault):
    """The engine is not the one the node said hello to, or its clock was set back."""


class FencedFault(RefusedFault):
    """The node's lease ended, and its members were announced gone."""


class GraceFault(RefusedFault):
    """A new epoch has begun, and nodes are entering again what they know.

    Attributes:
        wait_s: after which the call may be made again.
    """

    def __init__(self, message: str, wait_s: float) -> None:
        super().__init__(message)
        self.wait_s = wait_s


class CrowdedFault(RefusedFault):
    """The presence channel has as many members as it may."""


class MismatchFault(RefusedFault, ConfigurationFault):
    """This node and another one must not work together; the message says in what they differ."""


class ReplyFault(EngineFault):
    """Any other error reply of the engine."""


#: First word of an error reply -> the class, and the sentence. ``{}`` is what follows that word.
_BY_CODE: Final[dict[str, tuple[type[EngineFault], str]]] = {
    "NOAUTH": (
        CredentialsFault,
        "The engine wants a password. Set bus.password, and bus.username for an ACL user.",
    ),
    "WRONGPASS": (
        CredentialsFault,
        "The engine refuses user or password. Check bus.username and bus.password.",
    ),
    "NOPERM": (
        ForbiddenFault,
        "The engine's ACL forbids the node a command, key or topic: {} The user needs "
        "~PREFIXcc:* &PREFIXcc:* +@all -@dangerous +info +config|get.",
    ),
    "LOADING": (
        LoadingFault,
        "The engine is loading a data set from a file. One that keeps values in memory only has "
        'none: set save "" and appendonly no.',
    ),
    "READONLY": (
        ReplicaFault,
        "The engine is a replica and takes no writes. Give the primary's address, or Sentinels "
        "with bus.sentinel, which know it.",
    ),
    "MASTERDOWN": (
        ReplicaFault,
        "The engine is a replica that has lost its primary. Give the primary's address.",
    ),
    "OOM": (
        MemoryFault,
        "The engine's memory is full: used memory is above maxmemory. Raise maxmemory, or lower "
        "max_cache_bytes of the apps.",
    ),
    "NOREPLICAS": (
        NoReplicasFault,
        "The engine refuses writes because too few replicas follow it (min-replicas-to-write).",
    ),
    "MISCONF": (
        WritesStoppedFault,
        'The engine refuses writes because saving to disk failed. It must not save: set save "".',
    ),
    "BUSY": (
        BusyFault,
        "A script blocks the engine. It is none of this broker's, which are done in milliseconds.",
    ),
    "NOSCRIPT": (
        MissingFunctionFault,
        "The engine has lost the broker's functions. The next hello loads them.",
    ),
    "MOVED": (
        UnfitFault,
        "The engine is a member of a Redis Cluster, whose slots break batches. Use one or several "
        "independent primaries.",
    ),
    "NOPROTO": (UnfitFault, "The engine does not speak RESP3. Redis 7.0 or any Valkey does."),
    "EPOCH": (EpochFault, "The engine was restarted, failed over, flushed, or its clock set back."),
    "FENCED": (FencedFault, "The node's lease ended before it was renewed."),
    "CROWDED": (CrowdedFault, "The channel has {} members, as many as it may."),
    "MISMATCH": (MismatchFault, "{}"),
}


def fault_of(text: str) -> EngineFault:
    """Translate an error reply.

    Args:
        text: as the engine wrote it, without the leading ``-``.
    """
    code, _, rest = text.partition(" ")
    if code == "GRACE":
        wait_s = int(rest) / 1000 if rest.isdecimal() else 0.0
        return GraceFault("A new epoch has begun; nodes are entering what they know.", wait_s)
    if code in _BY_CODE:
        kind, sentence = _BY_CODE[code]
        if code == "NOPERM":
            # It ends in the name of what was refused, of which a key may tell a channel: kept, as
            # an operator cannot do without it, but short.
            rest = rest.split(" has no permissions to ")[-1][:120].rstrip(". ") + "."
        return kind(sentence.format(rest))
    if code == "CROSSSLOT":
        return UnfitFault(_BY_CODE["MOVED"][1])
    if code == "ERR":
        return _plain_error(rest)
    return ReplyFault(f"The engine answered with an error: {text[:120]}")


def _plain_error(rest: str) -> EngineFault:
    if rest.startswith("Function not found"):
        return MissingFunctionFault(_BY_CODE["NOSCRIPT"][1])
    if rest.startswith("AUTH <password> called without any password"):
        return CredentialsFault(
            "The engine has no password, but bus.password is set. Remove it, or set requirepass "
            "in the engine."
        )
    if rest.startswith(("unknown command", "unknown subcommand", "Unknown subcommand")):
        # What follows quotes arguments.
        name = rest.split("'")[1] if rest.count("'") > 1 else "a command"
        return UnfitFault(
            f"The engine does not know {name[:40]}: too old, or the command was renamed. "
            "Redis 7.0 or any Valkey is needed."
        )
    return ReplyFault(f"The engine answered with an error: {rest[:120]}")
