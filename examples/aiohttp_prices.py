"""aiohttp with the broker inside of it, in the same process and the same loop.

    python aiohttp_prices.py                        # http://127.0.0.1:8000/?user=ann
    curl -d usd=1.08 http://127.0.0.1:8000/prices

The broker is opened in a cleanup context, aiohttp's word for what lives as long as the application.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from cachecast import App, AppEvent, BadRequestError, BrokerConfig
from cachecast.asyncio import Broker, open_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

APP = App(id="4242", key="app-key", secret="app-secret")  # yours: from the environment
WEB = os.environ.get("WEB", "127.0.0.1:8000")
BROKER = os.environ.get("BROKER", "127.0.0.1:6001")

THE_BROKER = web.AppKey("broker", Broker)

routes = web.RouteTableDef()
visits: Counter[str] = Counter()


async def broker_of(app: web.Application) -> AsyncIterator[None]:
    async with open_broker(BrokerConfig(apps=[APP]), listen=BROKER) as broker:
        broker.on("member_added", on_member_added)
        app[THE_BROKER] = broker
        yield
        # Clients are told to come back, to the next process, instead of being cut off.
        await broker.server.drain(within_s=1)


async def on_member_added(app_id: str, event: AppEvent) -> None:
    """A hook: called in this loop, at once."""
    del app_id
    visits[event.user_id or ""] += 1


@routes.get("/")
async def page(request: web.Request) -> web.StreamResponse:
    del request
    return web.FileResponse(Path(__file__).with_name("page.html"))


@routes.get("/settings")
async def settings(request: web.Request) -> web.Response:
    return web.json_response({"key": APP.key, "port": request.app[THE_BROKER].server.port})


@routes.post("/prices")
async def publish(request: web.Request) -> web.Response:
    """Publish: whoever listens has it at once, and whoever comes within 30 minutes too."""
    form = await request.post()
    price = {"usd": float(str(form["usd"]))}
    await request.app[THE_BROKER].publish(APP.id, "private-cache-prices", "tick", price)
    return web.Response(status=204)


@routes.post("/pusher/auth")
async def authorize(request: web.Request) -> web.Response:
    """What pusher-js asks before it joins a private or presence channel."""
    user = request.cookies.get("user")
    if user is None:
        raise web.HTTPForbidden(text="Sign in first")
    form = await request.post()
    try:
        leave = request.app[THE_BROKER].authorize_channel(
            APP.id, str(form["socket_id"]), str(form["channel_name"]), user_id=user
        )
    except BadRequestError as error:
        raise web.HTTPBadRequest(text=error.message) from None
    return web.json_response(leave)


@routes.get("/visits")
async def count(request: web.Request) -> web.Response:
    """Who is here now, as the broker knows it, and how often each has come."""
    here = await request.app[THE_BROKER].users(APP.id, "presence-lobby")
    return web.json_response({"here": here, "visits": visits})


def make_app() -> web.Application:
    app = web.Application()
    app.add_routes(routes)
    app.cleanup_ctx.append(broker_of)
    return app


if __name__ == "__main__":
    host, _, port = WEB.rpartition(":")
    web.run_app(make_app(), host=host, port=int(port))
