"""Chromium with one HTML document, as a reader of README opens it; a program of its own.

    document.py CHROMIUM DOCUMENT LIBRARY SELECTOR

For each line on stdin it waits until the element's text is another one than before, and prints it.
LIBRARY stands in for pusher-js from Pusher's CDN, which tests do not ask.
"""

from __future__ import annotations

import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from tests.e2e.browser import ARGUMENTS

CHANGED = "([selector, text]) => document.querySelector(selector).textContent !== text"


def main(executable: str, document: str, library: str, selector: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        page = browser.new_page()
        page.route(
            "https://js.pusher.com/**",
            lambda route: route.fulfill(path=library, content_type="text/javascript"),
        )
        page.goto(Path(document).as_uri())
        text = "…"
        for _ in sys.stdin:
            page.wait_for_function(CHANGED, arg=[selector, text])
            text = page.inner_text(selector)
            print(text, flush=True)
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
