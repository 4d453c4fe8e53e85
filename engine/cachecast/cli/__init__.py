"""The command line: ``cachecast``.

``serve`` runs a node; ``remote`` has the commands that talk to any Pusher-compatible server,
``tools`` those that talk to none, and ``harnesses`` those that start another program.
"""

from __future__ import annotations

import sys
from typing import Final, NoReturn

import click
from trio import TrioInternalError

from cachecast import __version__
from cachecast.cli.bus import bus
from cachecast.cli.harnesses import bench, load
from cachecast.cli.reloads import reload_command
from cachecast.cli.remote import cache, channels, publish, subscribe, terminate
from cachecast.cli.serve import serve_command
from cachecast.cli.tools import check_config, generate, sign
from cachecast.cli.upgrade import upgrade_command
from cachecast.cli.watch import watch_command
from cachecast.cli.workers import worker_command
from cachecast.errors import EngineError

__all__ = ["cachecast", "main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="cachecast")
def cachecast() -> None:
    """A realtime broker that speaks the Pusher Channels protocol.

    Cached values are exact: gone 30 minutes after they were published.
    """


for _command in (
    serve_command, publish, subscribe, channels, cache, terminate, check_config, bus, generate,
    sign, load, bench, worker_command, reload_command,
    upgrade_command, watch_command,
):  # fmt: skip
    cachecast.add_command(_command)


#: Exceptions after which a node does not try to go on: which of its parts would fail next is a
#: matter of chance.
_OUT_OF_MEMORY: Final = (
    "out of memory, so it has ended. Raise the limit (`ulimit -v`, the container's), or lower "
    "max_cache_bytes and max_connections."
)


def main() -> None:
    """Run the command line.

    Errors are one line on stderr and exit code 1, wrong arguments 2, an interruption 130; never a
    traceback.
    """
    try:
        cachecast.main(standalone_mode=False)
    except click.exceptions.Exit as error:
        sys.exit(error.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (
        EngineError,
        UnicodeEncodeError,
        MemoryError,
        BaseExceptionGroup,
        TrioInternalError,
    ) as error:
        # Nurseries wrap what leaves them: a fault of an address, or what Ctrl-C interrupts.
        fault: BaseException = error
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        if isinstance(fault, KeyboardInterrupt):
            sys.exit(130)
        if isinstance(fault, UnicodeEncodeError):
            _fail("an argument or a CACHECAST_ variable is not valid UTF-8")
        if isinstance(fault, EngineError):
            _fail(str(fault).strip())
        if isinstance(fault, MemoryError) or isinstance(fault.__cause__, MemoryError):
            _fail(_OUT_OF_MEMORY)
        raise


def _fail(text: str) -> NoReturn:
    click.echo(f"cachecast: {text}", err=True)
    sys.exit(1)
