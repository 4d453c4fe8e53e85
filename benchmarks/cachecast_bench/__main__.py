"""`python -m cachecast_bench`, which `cachecast bench` becomes."""

import sys

if __name__ == "__main__":
    try:
        from cachecast_bench.cli import main

        main()
    except KeyboardInterrupt:  # before there was anybody to take it
        print("stopped", file=sys.stderr)
        sys.exit(3)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("cachecast"):
            raise
        print(
            f"cachecast bench needs {error.name}, which is not installed: "
            'pip install "cachecast[bench]"',
            file=sys.stderr,
        )
        sys.exit(3)
