"""``python -m cachecast`` is ``cachecast``."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; also what interrupts its imports is no traceback."""
    try:
        from cachecast.cli import main as run  # noqa: PLC0415 - see above
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
