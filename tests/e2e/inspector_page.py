"""Chromium with the inspector of a node, as an operator uses it; a program of its own.

    inspector_page.py CHROMIUM URL TOKEN SCREENSHOTS

Prints what it saw as JSON: what each view said, whether a script of a client's ran, the width of
each view at 390 px, and everything that the page complained of.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from playwright.sync_api import sync_playwright

from tests.e2e.browser import ARGUMENTS

if TYPE_CHECKING:
    from playwright.sync_api import Page

VIEWS = ("overview", "console", "channels", "cache", "connections", "webhooks", "publish")

#: Milliseconds that anything on loopback may take, also on a busy machine.
PATIENCE_MS = 60_000


def enter(page: Page, url: str, token: str) -> str:
    """Show a wrong token and then the right one, by the keyboard; what the wrong one was told."""
    page.goto(url)
    page.locator("#token").fill("not-the-token-at-all")
    page.keyboard.press("Enter")
    page.wait_for_selector("#entry-fault:not(:empty)")
    fault = page.locator("#entry-fault").inner_text()
    page.locator("#token").fill(token)
    page.keyboard.press("Enter")
    page.wait_for_selector(".figure")
    return fault


def publish(page: Page, channel: str, word: str, event: str, answer: str) -> str:
    """Publish from the page; ``word`` is what is typed to confirm it. What it said then."""
    page.goto(page.url.partition("#")[0] + "#publish")
    page.locator("form.publish input").nth(0).fill(channel)
    page.locator("form.publish input").nth(1).fill(event)
    page.locator("form.publish textarea").fill("<script>alert(2)</script>")
    page.locator("form.publish button").click()
    page.locator("#ask-word").fill(word)
    page.locator("#ask-yes").click()
    page.wait_for_selector(f"#state:text-matches('{answer}')")
    return page.locator("#state").inner_text()


def look(
    page: Page, url: str, name: str, shots: Path, width: int, scheme: str
) -> dict[str, object]:
    """One view, with a picture of it."""
    page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]  # a literal of ours
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(f"{url}#{name}")
    page.wait_for_selector("#view > *")
    if name in {"channels", "cache", "connections"}:
        page.wait_for_selector("#view tbody tr")
    page.screenshot(path=shots / f"{name}-{width}-{scheme}.png")
    return {
        "text": page.locator("#view").inner_text(),
        "width": page.evaluate("document.documentElement.scrollWidth"),
        "paper": page.evaluate("getComputedStyle(document.body).backgroundColor"),
    }


def use_keys(page: Page, url: str) -> dict[str, object]:
    """Find the members of a channel by the keyboard alone, and do not disconnect one after all."""
    page.goto(f"{url}#overview")
    page.locator("nav a[href='#channels']").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#view tbody tr")
    page.locator("#view button:text-is('Members')").focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#view button.danger")
    page.locator("#view button.danger").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector("#ask[open]")
    asked = page.locator("#ask-text").inner_text()
    page.keyboard.press("Escape")
    page.wait_for_selector("#ask:not([open])", state="attached")
    return {"members": page.locator("#view tbody").inner_text(), "asked": asked}


def disconnect(page: Page, url: str) -> str:
    """Disconnect a connection, and say which."""
    page.goto(f"{url}#connections")
    page.locator("#view button.danger").first.click()
    socket_id = page.locator("#ask-text").inner_text().rpartition(" ")[2]
    page.locator("#ask-word").fill(socket_id)
    page.locator("#ask-yes").click()
    page.wait_for_selector("#state:text-is('1 disconnected')")
    return socket_id


def go_astray(page: Page, url: str) -> str:
    """Follow a link to no view, and open one when the session has ended; what is said then."""
    page.goto(f"{url}#constructor")
    page.wait_for_selector(".figure")
    page.context.clear_cookies()
    page.goto(f"{url}#console")
    page.wait_for_selector("#entry:not([hidden])")
    return page.locator("#entry-fault").inner_text()


def main() -> None:
    """See the module."""
    executable, url, token, folder = sys.argv[1:]
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        context = browser.new_context()
        page = context.new_page()
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        fault = enter(page, url, token)
        hostile = "<img src=x onerror=alert(1)>"
        console = context.new_page()
        console.goto(f"{url}#console")
        console.wait_for_selector("#state:text-is('live')")
        refused = publish(page, "room-1", "room-2", hostile, "confirm")
        published = publish(page, "room-1", "room-1", hostile, "published")
        console.wait_for_selector("li:has-text('onerror')")
        views = {
            f"{name} {width}": look(page, url, name, Path(folder), width, scheme)
            for name in VIEWS
            for width, scheme in ((1280, "light"), (390, "dark"))
        }
        keys = use_keys(page, url)
        images = sum(each.locator("img").count() for each in (page, console))
        print(json.dumps({
            "fault": fault, "refused": refused, "published": published, "views": views,
            "console": console.locator(".log").inner_text(), "complaints": complaints,
            "disconnected": disconnect(page, url), "images": images, "keys": keys,
            "astray": go_astray(page, url),
        }))  # fmt: skip
        browser.close()


main()
