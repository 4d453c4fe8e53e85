"""Options that several commands take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["bus_options"]

_BUS: Final = (
    click.option(
        "--bus",
        help="URL of the engine that joins this node to others: valkey://HOST:PORT, redis://, "
        "valkeys:// and rediss:// with TLS, unix:///PATH; several are separated by spaces.",
    ),
    click.option("--bus-sentinel", help="Name of the primary; then --bus gives the Sentinels."),
    click.option("--bus-username", help="User of the engine's ACL."),
    click.option("--bus-password-file", help="File with the engine's password."),
    click.option("--bus-tls-ca", help="PEM file with the authority of the engine's certificate."),
    click.option("--bus-prefix", help="What keys begin with, for several clusters on one engine."),
    click.option("--bus-seal-key-file", help="File with the keys that values are sealed by."),
)


def bus_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say where the engine is."""
    for option in reversed(_BUS):
        command = option(command)
    return command
