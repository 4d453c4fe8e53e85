"""The table that grows on the terminal while a run goes on."""

from __future__ import annotations

from rich.console import Console

from cachecast_load.report import text
from cachecast_load.run.live import live_nodes, live_values
from cachecast_load.run.run import Run

NODES_EVERY_S = 5


class LiveTable:
    """A line a second on the terminal.

    Args:
        quiet: Whether to show nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._console = Console(stderr=True, highlight=False)
        self._lines = 0
        self._faults: dict[str, int] = {}
        self._second = -1

    def show(self, run: Run) -> None:
        """Print the newest second, and the heading every twenty lines."""
        values = live_values(run)
        if self._quiet or values["time"] == self._second:
            return
        self._second = int(str(values["time"]))
        if self._lines % 20 == 0:
            header = text.live_header(self._console.width)
            self._console.print(header, style="bold", soft_wrap=True)
        self._lines += 1
        self._console.print(text.live_line(values, self._console.width), soft_wrap=True)
        for url, of_node in live_nodes(run):
            faults = int(of_node["lost"]) + int(of_node["errors"])
            # All of them now and then, and at once whichever has something new to complain about.
            if self._second % NODES_EVERY_S == 0 or faults > self._faults.get(url, 0):
                self._console.print(text.live_node_line(url, of_node), soft_wrap=True)
            self._faults[url] = faults
