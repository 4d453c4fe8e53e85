"""Chromium, one page for each client; a program of its own (see program.py).

Playwright's event loop is asyncio, which must not share a process with the tests: they run Trio.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - playwright has no Trio API, and this is another process
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from playwright.async_api import Browser, Page, async_playwright

ARGUMENTS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]

#: What stands in for pusher-js from Pusher's CDN, which tests do not ask.
LIBRARY = Path(__file__).parent / "node_modules/pusher-js/dist/web/pusher.min.js"

SHOWS = "([selector, text]) => document.querySelector(selector)?.textContent === text"


def emit(message: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


class Pages:
    """The clients' pages; each is a tab of the same browser, all of them in the foreground."""

    def __init__(self, browser: Browser, origin: str) -> None:
        self._browser = browser
        self._origin = origin
        self._pages: dict[str, Page] = {}

    async def handle(self, request: dict[str, Any]) -> object:
        op, client = request.pop("op"), request["client"]
        if op == "close_page":
            page = self._pages.pop(client, None)
            if page is not None:
                await page.close(run_before_unload=bool(request.get("as_user")))
            return None
        if op == "visit":
            self._pages[client] = await self._visit(request["url"])
            return None
        if op == "wait_text":
            arguments = [request["selector"], request["text"]]
            await self._pages[client].wait_for_function(SHOWS, arg=arguments)
            return None
        if client not in self._pages:
            self._pages[client] = await self._open_page(client)
        return await self._pages[client].evaluate(
            "([op, request]) => window.stage[op](request)", [op, request]
        )

    async def _visit(self, url: str) -> Page:
        """A page of somebody else, who has cookies of their own."""
        # A page that brings its context along takes it away again when it is closed.
        page = await self._browser.new_page()
        await page.route(
            "https://js.pusher.com/**",
            lambda route: route.fulfill(path=LIBRARY, content_type="text/javascript"),
        )
        await page.goto(url)
        return page

    async def _open_page(self, client: str) -> Page:
        page = await self._browser.new_page()
        await self._tell_extensions(page, client)
        await page.expose_function("emit", emit)
        page.on(
            "pageerror", lambda error: emit({"client": "page", "on": "error", "text": str(error)})
        )
        await page.goto(f"{self._origin}/page.html")
        await page.wait_for_function("window.stage !== undefined")
        return page

    async def _tell_extensions(self, page: Page, client: str) -> None:
        """Say what each WebSocket of a page has agreed on with its server."""
        devtools = await page.context.new_cdp_session(page)
        devtools.on(
            "Network.webSocketHandshakeResponseReceived",
            lambda said: emit(
                {
                    "client": client,
                    "on": "extensions",
                    "text": {k.lower(): v for k, v in said["response"]["headers"].items()}.get(
                        "sec-websocket-extensions"
                    ),
                }
            ),
        )
        await devtools.send("Network.enable")


async def main(executable: str, origin: str) -> None:
    loop = asyncio.get_running_loop()
    requests = asyncio.StreamReader(limit=2**20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(requests), sys.stdin)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=executable, headless=True, args=ARGUMENTS
        )
        pages = Pages(browser, origin)
        versions = {"chromium": browser.version, "playwright": version("playwright")}
        emit({"client": "program", "on": "ready", "versions": versions})
        while line := await requests.readline():
            request = json.loads(line)
            number = request.pop("id")
            try:
                emit({"id": number, "result": await pages.handle(request)})
            except Exception as error:  # noqa: BLE001 - the test is told, whatever it was
                emit({"id": number, "error": str(error)})
        await browser.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
