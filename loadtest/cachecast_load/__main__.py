"""`python -m cachecast_load`."""

from cachecast_load.cli import main

if __name__ == "__main__":
    main()
