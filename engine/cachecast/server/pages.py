"""The inspector's page: four files of this package, and nothing of the network.

They are the same for everybody and have no secret in them; who may see more is asked by the page.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final

from cachecast.server.http_messages import Response

__all__ = ["find_page"]

#: Path below the inspector's -> file of this package, and its media type.
_FILES: Final = {
    "": ("page.html", "text/html; charset=utf-8"),
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/page.svg": ("page.svg", "image/svg+xml"),
}


def find_page(path: str) -> Response | None:
    """A file of the page; None if there is none of that path."""
    found = _FILES.get(path)
    return None if found is None else Response(200, _read(found[0]), found[1])


@cache
def _read(name: str) -> bytes:
    return resources.files("cachecast.server").joinpath("page", name).read_bytes()
