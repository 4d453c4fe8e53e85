"""Whether the engine keeps values in memory only: checked, not hoped for.

Each setting that would put a value, or an argument of a command, on a disk or keep it past its life
is a :class:`Finding` with the command that mends it. Replicas count: one that cannot be asked is a
finding too. Where CONFIG is forbidden, as managed services have it, that is the finding; then
values must be sealed (``seal.py``).

The check is made at start and every minute. A finding at start refuses to start; later it stops
cached publishes, unless values are sealed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from cachecast.bus.faults import ForbiddenError, LinkError, UnfitError
from cachecast.bus_config import Endpoint

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from cachecast.bus.resp import Connection, Reply

__all__ = ["Finding", "check_memory", "judge", "replicas_of"]


class Finding(msgspec.Struct, frozen=True):
    """One reason why a value could reach a disk, or outlive itself.

    Attributes:
        setting: name of the setting in the engine's configuration, or the field of INFO.
        value: value that the setting has.
        harm: damage that it does, in one sentence.
        remedy: command that mends it, or what to do.
        where: address of the engine, or of the replica.
    """

    setting: str
    value: str
    harm: str
    remedy: str
    where: str = ""

    def __str__(self) -> str:  # type: ignore[explicit-override]  # typing.override needs Python 3.12
        at = f" at {self.where}" if self.where else ""
        value = f" is {self.value!r}" if self.value else ""
        return f"The engine{at}: {self.setting}{value}: {self.harm} {self.remedy}"


#: Setting -> the values that are fine, the harm of others, the one to set.
_RULES: Final[dict[str, tuple[tuple[str, ...], str, str]]] = {
    "save": (("",), "it writes all values to a file.", '""'),
    "appendonly": (("no",), "it writes every value to a file.", "no"),
    "repl-diskless-sync": (
        ("yes",),
        "a replica that comes is sent all values by way of a file.",
        "yes",
    ),
    "crash-log-enabled": (("no",), "a crash prints the arguments of commands to the log.", "no"),
    "maxmemory-policy": (
        ("noeviction",),
        "values go before their time, and members with them.",
        "noeviction",
    ),
}

_WHEN_REPLICA: Final = {
    "repl-diskless-load": (
        ("swapdb", "flush-before-load"),
        "a replica writes all values to a file when it synchronizes, whatever else is set.",
        "swapdb",
    )
}

#: Setting of a log of commands: their length -> the threshold that may switch them off instead.
_LOGS: Final = {
    "slowlog-max-len": "slowlog-log-slower-than",
    "commandlog-slow-execution-max-len": "commandlog-execution-slower-than",
    "commandlog-large-request-max-len": "commandlog-request-larger-than",
    "commandlog-large-reply-max-len": "commandlog-reply-larger-than",
}

#: Settings that are asked for. An engine leaves out what it does not know.
SETTINGS: Final = (*_RULES, *_WHEN_REPLICA, *_LOGS, *_LOGS.values())


def judge(config: Mapping[str, str], info: Mapping[str, str]) -> list[Finding]:
    """What is wrong with one engine.

    Args:
        config: the answer of ``CONFIG GET``; names that are absent do not exist there.
        info: fields of ``INFO``.
    """
    rules = dict(_RULES)
    if info.get("role") == "slave" or int(info.get("connected_slaves", 0)):
        rules |= _WHEN_REPLICA  # a primary with replicas will be one after a failover
    found = [
        Finding(name, config[name], harm, f"CONFIG SET {name} {right}")
        for name, (fine, harm, right) in rules.items()
        if name in config and config[name] not in fine
    ]
    missing = [name for name in rules if name not in config]
    if "save" in missing or "appendonly" in missing:
        found.append(_unknown("CONFIG GET gives no save and appendonly."))
    # The slow log has two names in Valkey; one mend is enough.
    names = [name for name in _LOGS if name in config]
    if "commandlog-slow-execution-max-len" in names:
        names.remove("slowlog-max-len")
    found += [
        Finding(
            name,
            config[name],
            "it keeps arguments of commands, values among them, past their life.",
            f"CONFIG SET {name} 0",
        )
        for name in names
        if config[name] != "0" and config.get(_LOGS[name]) != "-1"
    ]
    return found + _judge_history(info)


def _judge_history(info: Mapping[str, str]) -> list[Finding]:
    """What has happened already, whoever did it."""
    found = []
    if info.get("rdb_saves", "0") != "0" or info.get("rdb_bgsave_in_progress", "0") != "0":
        found.append(
            Finding(
                "rdb_saves",
                info.get("rdb_saves", "0"),
                "somebody had the values written to a file (SAVE or BGSAVE).",
                "Delete that file (CONFIG GET dir and dbfilename), see who did it, then "
                "CONFIG RESETSTAT.",
            )
        )
    if info.get("aof_enabled", "0") != "0":
        found.append(
            Finding(
                "aof_enabled", "1", "it writes every value to a file.", "CONFIG SET appendonly no"
            )
        )
    return found


def _unknown(why: str) -> Finding:
    return Finding(
        "CONFIG",
        "",
        f"whether it keeps values in memory only cannot be checked: {why}",
        "Allow the ACL user +config|get and +info; or, for a managed service that forbids it, seal "
        "the values: bus.seal_key.",
    )


def replicas_of(info: Mapping[str, str]) -> list[Endpoint]:
    """Where a primary's replicas are, by its ``INFO``."""
    found = []
    for name, value in info.items():
        if re.fullmatch(r"slave\d+", name):
            fields = dict(pair.partition("=")[::2] for pair in value.split(","))
            if "ip" in fields and fields.get("port", "").isdecimal():
                found.append(Endpoint(fields["ip"], int(fields["port"])))
    return found


async def check_memory(
    connection: Connection,
    where: str,
    ask_replica: Callable[[Endpoint], Awaitable[list[Finding]]] | None = None,
) -> list[Finding]:
    """Check a primary and its replicas.

    Bound it by a cancel scope. If cancelled, nothing has changed: it only asks.

    Args:
        connection: connection to the engine.
        where: address of the engine, for the findings.
        ask_replica: function that connects to a replica and calls this function on it; None: do not
            ask any.

    Returns:
        Findings of what is wrong; empty if values stay in memory.

    Raises:
        UnavailableError: the connection ended.
    """
    info = _fields(await connection.call("INFO"))
    try:
        config = _pairs(await connection.call("CONFIG", "GET", *SETTINGS))
    except (ForbiddenError, UnfitError):
        found = [_unknown("CONFIG is forbidden."), *_judge_history(info)]
    else:
        found = judge(config, info)
    found = [msgspec.structs.replace(finding, where=where) for finding in found]
    if ask_replica is None:
        return found
    for replica in replicas_of(info):
        try:
            found += await ask_replica(replica)
        except LinkError as fault:
            found.append(
                Finding(
                    "a replica",
                    str(replica),
                    f"whether it keeps values in memory only cannot be checked: {fault}",
                    "Make it reachable from the nodes, or remove it.",
                    where,
                )
            )
    return found


def _fields(reply: Reply) -> dict[str, str]:
    """What INFO says."""
    text = reply.decode("utf-8", "replace") if isinstance(reply, bytes) else str(reply)
    return dict(re.findall(r"^(\w+):(.*?)\r?$", text, re.MULTILINE))


def _pairs(reply: Reply) -> dict[str, str]:
    """What CONFIG GET says: a map in RESP3."""
    return {name.decode(): value.decode("utf-8", "replace") for name, value in reply.items()}
