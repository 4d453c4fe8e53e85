"""Chromium with one report, as a reader sees it; a program of its own (see tests/e2e/browser.py).

    page.py CHROMIUM DOCUMENT

Prints what it found as JSON: for each width what is out of sight and which labels collide, the
colours in light, dark and print, and everything that the page complained of.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from tests.e2e.browser import ARGUMENTS

LOOK = """() => {
  const boxes = (root, selector) => [...root.querySelectorAll(selector)]
    .filter(node => getComputedStyle(node).display !== 'none')
    .map(node => [node.textContent, node.getBoundingClientRect()]);
  const hidden = boxes(document, 'td, tbody th, text')
    .filter(([text, box]) => text && (box.left < 0 || box.right > innerWidth + 1));
  const collisions = [];
  for (const chart of document.querySelectorAll('svg')) {
    const labels = boxes(chart, 'text');
    labels.forEach(([one, a], place) => labels.slice(place + 1).forEach(([other, b]) => {
      const across = a.left < b.right - 1 && b.left < a.right - 1;
      if (across && a.top < b.bottom - 4 && b.top < a.bottom - 4)
        collisions.push([chart.getAttribute('aria-label').slice(0, 40), one, other]);
    }));
  }
  return {
    width: document.documentElement.scrollWidth,
    hidden: hidden.map(([text]) => text),
    collisions,
    marks: boxes(document, 'svg text.mark').map(([text]) => text),
    latencies: boxes(document, 'table.many td').map(([text]) => text),
    background: getComputedStyle(document.body).backgroundColor,
  };
}"""
TIP = """() => {
  const chart = document.querySelector('svg[data-chart]'), box = chart.getBoundingClientRect();
  chart.dispatchEvent(new PointerEvent('pointermove',
    {clientX: box.left + box.width / 2, clientY: box.top + 9}));
  return document.querySelector('.tip')?.textContent ?? '';
}"""


def look(browser: Browser, document: str, width: int, scheme: str) -> dict[str, object]:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(Path(document).as_uri())
    seen = page.evaluate(LOOK)
    seen["tip"] = page.evaluate(TIP)
    page.emulate_media(media="print")
    seen["printed"] = page.evaluate(LOOK)["background"]
    page.close()
    return {**seen, "complaints": complaints, "requests": requests[1:]}


def main(executable: str, document: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        seen = {
            "narrow": look(browser, document, 390, "light"),
            "wide": look(browser, document, 1240, "dark"),
        }
        print(json.dumps(seen))
        browser.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
