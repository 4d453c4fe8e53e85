"""References that are made from the code when the site is built; see ``conf.py``."""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import TYPE_CHECKING, Final, TypeVar

import click
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from cachecast.cli import cachecast
from cachecast.metrics import AppStatistics, BrokerStatistics, EngineStatistics, exposition

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["FACADES", "PARTS"]

T = TypeVar("T")

#: Classes of which embedders use a part -> that part. By the rest, and by the attributes that their
#: docstrings explain, the engine's own parts know each other.
FACADES: Final = {
    "cachecast.Broker": (
        "publish", "publish_nowait", "publish_batch", "send_to_user", "subscribe", "on",
        "channels", "channel", "users", "read_cache", "terminate",
        "authorize_channel", "authenticate_user", "encrypt",
        "is_ready", "statistics", "reload",
    ),
    "cachecast.Server": ("drain",),
    "cachecast.Subscriber": ("conflated", "close"),
}  # fmt: skip

PUBLIC: Final = (
    "cachecast",
    "cachecast.client",
    "cachecast.asyncio",
    "cachecast.testing",
    "cachecast.testing.asyncio",
)


def commands() -> str:
    """All commands with their options, from the objects that click runs."""
    return "\n".join(_command(cachecast, [], None))


def _command(command: click.Command, way: list[str], parent: click.Context | None) -> Iterator[str]:
    way = [*way, command.name or ""]
    # With all its settings, and those of its parents: a command keeps the help option that it is
    # asked for first.
    settings = command.context_settings | {"max_content_width": 500}
    context = click.Context(command, parent, " ".join(way), **settings)
    yield from (f"## `{' '.join(way)}`", "", inspect.cleandoc(command.help or ""), "")
    yield from ("```text", " ".join([*way, *command.collect_usage_pieces(context)]), "```", "")
    records = [one.get_help_record(context) for one in command.get_params(context)]
    options = [one for one in records if one is not None and "--help" not in one[0]]
    if options:
        yield from ("| option | what it is |", "|---|---|")
        yield from (f"| `{_cell(name)}` | {_cell(text)} |" for name, text in options)
        yield ""
    for one in getattr(command, "commands", {}).values():
        if not one.hidden:
            yield from _command(one, way, context)


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


def api() -> str:
    """The public names of each public module, from their docstrings."""
    return "\n".join(_module(name) for name in PUBLIC)


def _module(name: str) -> str:
    module = import_module(name)
    lines = [f"## `{name}`", "", "```{eval-rst}", f".. currentmodule:: {name}", ""]
    known = [import_module(one) for one in PUBLIC[: PUBLIC.index(name)]]
    for public in module.__all__:
        value = getattr(module, public)
        same = [one.__name__ for one in known if getattr(one, public, None) is value]
        if same:
            lines += [f"``{public}`` is that of ``{same[0]}``.", ""]
        else:
            lines += [*_describe(f"{name}.{public}", value), ""]
    return "\n".join([*lines, "```", ""])


def _describe(name: str, value: object) -> list[str]:
    if inspect.isclass(value) and issubclass(value, BaseException):
        return [f".. autoexception:: {name}", "   :show-inheritance:"]
    if inspect.isclass(value):
        members = ", ".join(FACADES.get(name, ()))
        return [f".. autoclass:: {name}", f"   :members: {members}".rstrip()]
    if inspect.isfunction(value):
        return [f".. autofunction:: {name}"]
    return [f".. autodata:: {name}", "   :no-value:"]


def metrics() -> str:
    """A table of what a node exports: one that has an app, an engine, and one of everything."""
    app = _one_of_each(AppStatistics)
    node = _one_of_each(BrokerStatistics, apps=(app,), engines=(_one_of_each(EngineStatistics),))
    page = exposition(lambda: node).decode()
    rows = ["| metric | what it is |", "|---|---|"]
    for one in text_string_to_metric_families(page):
        if not one.name.startswith("cachecast_"):
            continue
        labels = sorted({label for sample in one.samples for label in sample.labels} - {"le"})
        by = " by " + ", ".join(f"`{label}`" for label in labels) if labels else ""
        suffix = "_total" if one.type == "counter" else ""
        rows.append(f"| `{one.name}{suffix}` | {one.documentation} ({one.type}{by}) |")
    return "\n".join(rows) + "\n"


def _one_of_each(kind: type[T], **values: object) -> T:
    """Statistics in which everything was counted once."""
    for field in msgspec.structs.fields(kind):
        if field.required and field.name not in values:
            is_table = getattr(field.type, "__origin__", None) is dict
            values[field.name] = {"example": 1} if is_table else field.type(1)
    return kind(**values)


#: What a page can ask for, and what makes it.
PARTS: Final[dict[str, Callable[[], str]]] = {
    "commands": commands,
    "api": api,
    "metrics": metrics,
}
