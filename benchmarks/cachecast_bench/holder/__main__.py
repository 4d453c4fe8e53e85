"""The holder process; its argument is the endpoint as JSON."""

from __future__ import annotations

import gc
import json
import sys

from cachecast_bench.dialects import open_dialect
from cachecast_bench.generator.pipe import serve_requests
from cachecast_bench.holder.holding import Holder


def main() -> None:
    """Serve requests until stdin ends."""
    # Nothing here forms cycles, and a collection over twenty thousand clients would be in their
    # delays.
    gc.disable()
    holder = Holder(open_dialect(json.loads(sys.argv[1])))
    serve_requests(holder.loop, holder.execute)


if __name__ == "__main__":
    main()
