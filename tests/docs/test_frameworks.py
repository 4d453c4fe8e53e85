"""The guides for frameworks show pieces of the programs in examples/, which are run elsewhere.

And the client's guide shows one for asyncio.
"""

from __future__ import annotations

import asyncio  # noqa: TID251 - what the guides are about
import re
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest

from cachecast import BrokerConfig
from cachecast.asyncio import open_broker
from cachecast.config import DEMO_APP

ROOT = Path(__file__).parents[2]
PROGRAMS = "\n".join(
    path.read_text()
    for path in sorted((ROOT / "examples").iterdir())
    if path.suffix in {".py", ".toml"}
)


@pytest.mark.parametrize("page", ["fastapi", "django"])
def test_what_a_guide_shows_stands_in_an_example(page: str) -> None:
    """Line for line, so that it is as true as the program is."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    shown = re.findall(r"```(?:python|toml)\n(.*?)```", text, re.DOTALL)

    assert len(shown) > 5
    # A piece of a function is shown without what it is indented by.
    lacking = [s for s in shown if s not in PROGRAMS and indent(s, "    ") not in PROGRAMS]
    assert lacking == []


@pytest.mark.parametrize("page", ["fastapi", "django"])
def test_commands_of_a_guide_are_those_of_the_examples(page: str) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text()
    readme = (ROOT / "examples" / "README.md").read_text()
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
             for line in block.splitlines()]  # fmt: skip

    assert [line for line in lines if f"`{line}`" not in readme] == []


def test_what_the_clients_guide_shows_for_asyncio_works() -> None:
    """Until it is cancelled, as any task is."""
    guide = (ROOT / "docs" / "client.md").read_text().partition("## In an asyncio program")[2]
    (block,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    lines: list[tuple[object, ...]] = []

    async def main() -> None:
        heard = asyncio.Event()

        def note(*words: object) -> None:
            lines.append(words)
            heard.set()

        names: dict[str, Any] = {"print": note}
        async with (
            asyncio.timeout(60),
            open_broker(BrokerConfig(apps=[DEMO_APP]), listen="127.0.0.1:0") as broker,
        ):
            assert broker.server is not None
            exec(block.replace("6001", str(broker.server.port)), names)
            await broker.publish(DEMO_APP.id, "private-cache-prices", "tick", "1.08")
            listening = asyncio.create_task(names["listen"]())
            await heard.wait()
            listening.cancel()
            await asyncio.wait([listening])
            assert listening.cancelled()

    asyncio.run(main())
    assert lines == [("tick", "1.08")]
