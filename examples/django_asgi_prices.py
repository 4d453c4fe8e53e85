"""Django under ASGI with the broker inside of it, in the same process and the same loop.

    uvicorn django_asgi_prices:application --port 8000   # http://127.0.0.1:8000/?user=ann
    curl -d usd=1.08 http://127.0.0.1:8000/prices

Django has no lifespan: its ASGI application refuses that kind of scope. So ``application`` below
answers the server's lifespan itself, opens the broker in it, and hands all else to Django. It takes
an ASGI server that has a lifespan: uvicorn and Hypercorn do, Daphne does not.

One file, so that it can be read; the settings, the views and the last function belong where your
project has them.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from cachecast import App, AppEvent, BadRequestError, BrokerConfig
from cachecast.asyncio import Broker, open_broker

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

APP = App(id="4242", key="app-key", secret="app-secret")  # yours: from the environment
BROKER = os.environ.get("BROKER", "127.0.0.1:6001")

visits: Counter[str] = Counter()

# --- settings.py

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="yours: from the environment",
)

# --- views.py


def the_broker() -> Broker:
    broker: Broker = opened["broker"]
    return broker


def page(request: HttpRequest) -> HttpResponse:
    del request
    return HttpResponse(Path(__file__).with_name("page.html").read_bytes())


async def show_settings(request: HttpRequest) -> HttpResponse:
    del request
    return JsonResponse({"key": APP.key, "port": the_broker().server.port})


@csrf_exempt  # for curl; a page of your own sends the token
@require_POST
async def publish(request: HttpRequest) -> HttpResponse:
    """Publish: whoever listens has it at once, and whoever comes within 30 minutes too."""
    price = {"usd": float(request.POST["usd"])}
    await the_broker().publish(APP.id, "private-cache-prices", "tick", price)
    return HttpResponse(status=204)


@csrf_exempt
@require_POST
def publish_from_a_thread(request: HttpRequest) -> HttpResponse:
    """The same in a plain view, which Django runs in a thread. So do signals and the ORM."""
    price = {"usd": float(request.POST["usd"])}
    the_broker().sync.publish(APP.id, "private-cache-prices", "tick", price)
    return HttpResponse(status=204)


@csrf_exempt  # pusher-js can send the token, see its option channelAuthorization.headers
@require_POST
async def authorize(request: HttpRequest) -> HttpResponse:
    """What pusher-js asks before it joins a private or presence channel."""
    user = request.COOKIES.get("user")  # yours: request.user
    if user is None:
        return HttpResponse("Sign in first", status=403)
    try:
        leave = the_broker().authorize_channel(
            APP.id, request.POST["socket_id"], request.POST["channel_name"], user_id=user
        )
    except BadRequestError as error:
        return HttpResponse(error.message, status=400)
    return JsonResponse(leave)


async def count(request: HttpRequest) -> HttpResponse:
    """Who is here now, as the broker knows it, and how often each has come."""
    del request
    here = await the_broker().users(APP.id, "presence-lobby")
    return JsonResponse({"here": here, "visits": visits})


# --- urls.py

urlpatterns = [
    path("", page),
    path("settings", show_settings),
    path("prices", publish),
    path("prices/sync", publish_from_a_thread),
    path("pusher/auth", authorize),
    path("visits", count),
]

# --- asgi.py

opened: dict[str, Any] = {}
django = get_asgi_application()


@asynccontextmanager
async def lifespan() -> AsyncIterator[None]:
    async with open_broker(BrokerConfig(apps=[APP]), listen=BROKER) as broker:
        broker.on("member_added", on_member_added)
        opened["broker"] = broker
        yield
        # Clients are told to come back, to the next process, instead of being cut off.
        await broker.server.drain(within_s=1)


async def on_member_added(app_id: str, event: AppEvent) -> None:
    """A hook: called in this loop, at once."""
    del app_id
    visits[event.user_id or ""] += 1


async def application(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    if scope["type"] != "lifespan":
        await django(scope, receive, send)
        return
    await receive()  # lifespan.startup
    step = "startup"
    try:
        async with lifespan():
            await send({"type": "lifespan.startup.complete"})
            await receive()  # lifespan.shutdown
            step = "shutdown"
    except BaseException:
        # Said in ASGI's words; what is only raised means that there is no lifespan, and the server
        # would go on without a broker.
        await send({"type": f"lifespan.{step}.failed", "message": traceback.format_exc()})
        raise
    await send({"type": "lifespan.shutdown.complete"})
