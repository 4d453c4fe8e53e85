"""Quart on Trio with the broker beside it: one loop, no thread.

    python quart_trio_prices.py                     # http://127.0.0.1:8000/?user=ann
    curl -d usd=1.08 http://127.0.0.1:8000/prices

Everything is a task of one ``trio.run``, so the broker is Trio's own, ``cachecast.open_broker``. It
stands *around* the web server: when that has ended, clients are told, and then the broker ends.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import hypercorn.trio
import trio
from hypercorn.config import Config
from quart import Response, abort, jsonify, request
from quart_trio import QuartTrio

from cachecast import (
    App,
    AppEvent,
    BadRequestError,
    Broker,
    BrokerConfig,
    Server,
    open_broker,
    serve,
)

APP = App(id="4242", key="app-key", secret="app-secret")  # yours: from the environment
WEB = os.environ.get("WEB", "127.0.0.1:8000")
BROKER = os.environ.get("BROKER", "127.0.0.1:6001")

app = QuartTrio(__name__)
visits: Counter[str] = Counter()


def broker() -> Broker:
    return app.extensions["broker"]  # put there by main()


@app.get("/")
async def page() -> Response:
    return Response(Path(__file__).with_name("page.html").read_text(), mimetype="text/html")


@app.get("/settings")
async def settings() -> Response:
    server: Server = app.extensions["server"]
    return jsonify(key=APP.key, port=server.port)


@app.post("/prices")
async def publish() -> tuple[str, int]:
    """Publish: whoever listens has it at once, and whoever comes within 30 minutes too."""
    form = await request.form
    await broker().publish(APP.id, "private-cache-prices", "tick", {"usd": float(form["usd"])})
    return "", 204


@app.post("/pusher/auth")
async def authorize() -> Response:
    """What pusher-js asks before it joins a private or presence channel."""
    user = request.cookies.get("user")
    if user is None:
        abort(403)
    form = await request.form
    try:
        leave = broker().authorize_channel(
            APP.id, form["socket_id"], form["channel_name"], user_id=user
        )
    except BadRequestError as error:
        abort(400, error.message)
    return jsonify(leave)


@app.get("/visits")
async def count() -> Response:
    """Who is here now, as the broker knows it, and how often each has come."""
    return jsonify(here=await broker().users(APP.id, "presence-lobby"), visits=visits)


async def on_member_added(app_id: str, event: AppEvent) -> None:
    """A hook: called in this process, at once."""
    del app_id
    visits[event.user_id or ""] += 1


async def wait_for_signal() -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            return


async def main() -> None:
    config = Config()
    config.bind = [WEB]
    config.graceful_timeout = 1  # seconds that browsers' idle connections may hold up the end
    async with open_broker(BrokerConfig(apps=[APP])) as opened, trio.open_nursery() as nursery:
        opened.on("member_added", on_member_added)
        app.extensions["broker"] = opened
        app.extensions["server"] = server = await nursery.start(serve, opened, BROKER)
        await hypercorn.trio.serve(app, config, shutdown_trigger=wait_for_signal)
        with trio.move_on_after(5):
            await server.drain(within_s=1)  # clients come back, to the next process
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main)
