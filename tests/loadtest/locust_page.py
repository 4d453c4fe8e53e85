"""Somebody at Locust's page in Chromium: sets values, starts, looks, stops; a program of its own.

    locust_page.py CHROMIUM URL FOLDER

Prints what was seen as JSON; pictures of it are in FOLDER.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.e2e.browser import ARGUMENTS

PATIENCE_MS = 60_000
# The strip beneath Locust's page has a tree of its own.
STRIP = "document.getElementById('cachecast').shadowRoot"


def main(executable: str, url: str, folder: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        seen: dict[str, Any] = {"complaints": complaints}
        page.goto(url)
        seen["form"] = {
            name: page.input_value(f"input[name={name}]")
            for name in ("userCount", "spawnRate", "rate")
        }
        page.get_by_text("Custom parameters").click()
        page.fill("input[name=userCount]", "30")
        page.fill("input[name=rate]", "1e9")
        page.click("button[type=submit]")
        seen["refused"] = page.get_by_text("raise max_rate").first.inner_text()
        page.fill("input[name=rate]", "15")
        page.click("button[type=submit]")
        page.get_by_role("tab", name="Charts").click()
        page.wait_for_function(f"{STRIP}.querySelectorAll('.charts svg').length > 5")
        page.wait_for_function(f"{STRIP}.querySelector('.strip p').textContent.includes('measure')")
        page.wait_for_function("document.getElementById('root').innerText.includes('RUNNING')")
        seen["strip"] = page.evaluate(f"{STRIP}.querySelector('.strip p').textContent")
        page.wait_for_function("/Users\\s+30\\s/.test(document.getElementById('root').innerText)")
        seen["canvases"] = page.evaluate(
            "document.querySelectorAll('#root canvas, #root svg').length"
        )
        look(page, folder, "running")
        page.get_by_role("button", name="Stop").click()
        page.wait_for_function(
            f"['PASS', 'INVALID', 'FAIL'].includes({STRIP}.querySelector('.badge').textContent)"
        )
        page.wait_for_function("document.getElementById('root').innerText.includes('STOPPED')")
        seen["badge"] = page.evaluate(f"{STRIP}.querySelector('.badge').textContent")
        link = page.evaluate(f"{STRIP}.querySelector('a').href")
        page.goto(link)
        seen["report"] = page.inner_text("h1")
        page.goto(f"{url}/stats/report")
        page.get_by_text("event delivered").first.wait_for()
        seen["history"] = page.evaluate("window.templateArgs.history")
        browser.close()
        print(json.dumps(seen))


def look(page: Page, folder: str, name: str) -> None:
    """Take pictures in light, in dark and on a phone; nothing may be wider than the page."""
    for scheme, width in (("light", 1280), ("dark", 1280), ("light", 390)):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        page.set_viewport_size({"width": width, "height": 900})
        path = Path(folder, f"{name}-{scheme}-{width}.png")
        page.screenshot(path=path, full_page=True)
        wide = page.evaluate(f"{STRIP}.host.scrollWidth > document.documentElement.clientWidth")
        assert not wide, path
    page.set_viewport_size({"width": 1280, "height": 900})


if __name__ == "__main__":
    main(*sys.argv[1:])
