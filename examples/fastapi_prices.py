"""FastAPI with the broker inside of it, in the same process and the same loop.

    uvicorn fastapi_prices:app --port 8000          # http://127.0.0.1:8000/?user=ann
    curl -d usd=1.08 http://127.0.0.1:8000/prices

The broker is opened in FastAPI's lifespan. Web requests come to uvicorn's port, clients of channels
to the broker's own, for it speaks to sockets directly.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Cookie, Depends, FastAPI, Form, HTTPException, Request, Response
from fastapi.responses import FileResponse

from cachecast import App, AppEvent, BadRequestError, BrokerConfig
from cachecast.asyncio import Broker, open_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

APP = App(id="4242", key="app-key", secret="app-secret")  # yours: from the environment
BROKER = os.environ.get("BROKER", "127.0.0.1:6001")

visits: Counter[str] = Counter()
highest = 0.0


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    config = BrokerConfig(apps=[APP])
    async with open_broker(config, listen=BROKER) as broker, asyncio.TaskGroup() as tasks:
        broker.on("member_added", on_member_added)
        watching = tasks.create_task(watch(broker))
        app.state.broker = broker
        yield
        watching.cancel()
        # Clients are told to come back, to the next process, instead of being cut off.
        await broker.server.drain(within_s=1)


async def on_member_added(app_id: str, event: AppEvent) -> None:
    """A hook: called in this loop, at once."""
    del app_id
    visits[event.user_id or ""] += 1


async def watch(broker: Broker) -> None:
    """A subscription: this process hears what is published like any client, without a socket."""
    global highest  # noqa: PLW0603 - an application has a better place
    async with broker.subscribe(APP.id, "private-cache-prices") as events:
        async for event in events:
            highest = max(highest, event.json()["usd"])


app = FastAPI(lifespan=lifespan)


def the_broker(request: Request) -> Broker:
    broker: Broker = request.app.state.broker
    return broker


TheBroker = Annotated[Broker, Depends(the_broker)]


@app.get("/")
async def page() -> FileResponse:
    return FileResponse(Path(__file__).with_name("page.html"))


@app.get("/settings")
async def settings(broker: TheBroker) -> dict[str, Any]:
    return {"key": APP.key, "port": broker.server.port}


@app.post("/prices", status_code=204)
async def publish(broker: TheBroker, usd: Annotated[float, Form()]) -> Response:
    """Publish: whoever listens has it at once, and whoever comes within 30 minutes too."""
    await broker.publish(APP.id, "private-cache-prices", "tick", {"usd": usd})
    return Response(status_code=204)


@app.post("/prices/sync", status_code=204)
def publish_from_a_thread(broker: TheBroker, usd: Annotated[float, Form()]) -> Response:
    """The same in a plain ``def``, which FastAPI runs in a thread."""
    broker.sync.publish(APP.id, "private-cache-prices", "tick", {"usd": usd})
    return Response(status_code=204)


@app.post("/pusher/auth")
async def authorize(
    broker: TheBroker,
    socket_id: Annotated[str, Form()],
    channel_name: Annotated[str, Form()],
    user: Annotated[str | None, Cookie()] = None,
) -> dict[str, str]:
    """What pusher-js asks before it joins a private or presence channel."""
    if user is None:
        raise HTTPException(403, "Sign in first")
    try:
        return broker.authorize_channel(APP.id, socket_id, channel_name, user_id=user)
    except BadRequestError as error:
        raise HTTPException(400, error.message) from None


@app.get("/visits")
async def count(broker: TheBroker) -> dict[str, Any]:
    """Who is here now, as the broker knows it, and how often each has come."""
    return {"here": await broker.users(APP.id, "presence-lobby"), "visits": visits}


@app.get("/highest")
async def show_highest() -> dict[str, float]:
    return {"usd": highest}
