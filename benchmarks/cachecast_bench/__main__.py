"""`python -m cachecast_bench`."""

from cachecast_bench.cli import main

if __name__ == "__main__":
    main()
