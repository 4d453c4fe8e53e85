"""The generator process; its argument is the endpoint as JSON."""

from __future__ import annotations

import json
import sys

from cachecast_bench.dialects import open_dialect
from cachecast_bench.generator.commands import Commands
from cachecast_bench.generator.pipe import serve_requests


def main() -> None:
    """Serve requests until stdin ends."""
    commands = Commands(open_dialect(json.loads(sys.argv[1])))
    serve_requests(commands.loop, commands.execute)


if __name__ == "__main__":
    main()
