"""The page's files: nothing of the network, nothing inline, nothing that reads HTML from data."""

from __future__ import annotations

import re

import pytest

from cachecast.server.pages import find_page


@pytest.mark.parametrize("path", ["", "/", "/page.css", "/page.js", "/page.svg"])
def test_it_is_self_contained(path):
    text = find_page(path).body.decode()
    assert not re.search(r"https?://|//[a-z]+\.", text.replace("http://www.w3.org/2000/svg", ""))
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)
    assert not re.search(r"<style|\son\w+=|style=", text)


def test_other_files_are_not_there():
    assert find_page("/../inspector.py") is None
    assert find_page("/page.html") is None
