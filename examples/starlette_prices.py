"""Starlette with the broker inside of it, in the same process and the same loop.

    uvicorn starlette_prices:app --port 8000        # http://127.0.0.1:8000/?user=ann
    curl -d usd=1.08 http://127.0.0.1:8000/prices

The broker is opened in the application's lifespan, and so its end is the application's.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from cachecast import App, AppEvent, BadRequestError, BrokerConfig
from cachecast.asyncio import open_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.requests import Request

    from cachecast.asyncio import Broker

APP = App(id="4242", key="app-key", secret="app-secret")  # yours: from the environment
BROKER = os.environ.get("BROKER", "127.0.0.1:6001")

visits: Counter[str] = Counter()


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Broker]]:
    del app
    async with open_broker(BrokerConfig(apps=[APP]), listen=BROKER) as broker:
        broker.on("member_added", on_member_added)
        yield {"broker": broker}  # what each request finds in its state
        # Clients are told to come back, to the next process, instead of being cut off.
        await broker.server.drain(within_s=1)


async def on_member_added(app_id: str, event: AppEvent) -> None:
    """A hook: called in this loop, at once."""
    del app_id
    visits[event.user_id or ""] += 1


async def page(request: Request) -> Response:
    del request
    return FileResponse(Path(__file__).with_name("page.html"))


async def settings(request: Request) -> Response:
    return JSONResponse({"key": APP.key, "port": request.state.broker.server.port})


async def publish(request: Request) -> Response:
    """Publish: whoever listens has it at once, and whoever comes within 30 minutes too."""
    form = await request.form()
    price = {"usd": float(str(form["usd"]))}
    await request.state.broker.publish(APP.id, "private-cache-prices", "tick", price)
    return Response(status_code=204)


async def authorize(request: Request) -> Response:
    """What pusher-js asks before it joins a private or presence channel."""
    user = request.cookies.get("user")
    if user is None:
        return PlainTextResponse("Sign in first", 403)
    form = await request.form()
    try:
        leave = request.state.broker.authorize_channel(
            APP.id, str(form["socket_id"]), str(form["channel_name"]), user_id=user
        )
    except BadRequestError as error:
        return PlainTextResponse(error.message, 400)
    return JSONResponse(leave)


async def count(request: Request) -> Response:
    """Who is here now, as the broker knows it, and how often each has come."""
    here = await request.state.broker.users(APP.id, "presence-lobby")
    return JSONResponse({"here": here, "visits": visits})


app = Starlette(
    lifespan=lifespan,
    routes=[
        Route("/", page),
        Route("/settings", settings),
        Route("/prices", publish, methods=["POST"]),
        Route("/pusher/auth", authorize, methods=["POST"]),
        Route("/visits", count),
    ],
)
