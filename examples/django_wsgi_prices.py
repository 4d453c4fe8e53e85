"""Django under WSGI in one process, with the broker beside it; views run in threads.

    python django_wsgi_prices.py                    # http://127.0.0.1:8000/?user=ann
    curl -d usd=1.08 http://127.0.0.1:8000/prices

WSGI has no loop, so this program brings one: a thread with asyncio and the broker, beside waitress
and the threads of the views. They use ``broker.sync``, which may be called from any thread.

That is for one process. gunicorn and uWSGI start several, and each would have a broker of its own;
see django_workers_prices.py for those.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import waitress
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from cachecast import App, AppEvent, BadRequestError, BrokerConfig
from cachecast.asyncio import open_broker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachecast.asyncio import SyncBroker

APP = App(id="4242", key="app-key", secret="app-secret")  # yours: from the environment
WEB = os.environ.get("WEB", "127.0.0.1:8000")
BROKER = os.environ.get("BROKER", "127.0.0.1:6001")

visits: Counter[str] = Counter()
opened: dict[str, Any] = {}

# --- settings.py

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="yours: from the environment",
)

# --- views.py


def the_broker() -> SyncBroker:
    broker: SyncBroker = opened["broker"]
    return broker


def page(request: HttpRequest) -> HttpResponseBase:
    del request
    return FileResponse(Path(__file__).with_name("page.html").open("rb"))


def show_settings(request: HttpRequest) -> HttpResponse:
    del request
    return JsonResponse({"key": APP.key, "port": opened["port"]})


@csrf_exempt  # for curl; a page of your own sends the token
@require_POST
def publish(request: HttpRequest) -> HttpResponse:
    """Publish: whoever listens has it at once, and whoever comes within 30 minutes too."""
    price = {"usd": float(request.POST["usd"])}
    the_broker().publish(APP.id, "private-cache-prices", "tick", price)
    return HttpResponse(status=204)


@csrf_exempt  # pusher-js can send the token, see its option channelAuthorization.headers
@require_POST
def authorize(request: HttpRequest) -> HttpResponse:
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


def count(request: HttpRequest) -> HttpResponse:
    """Who is here now, as the broker knows it, and how often each has come."""
    del request
    return JsonResponse({"here": the_broker().users(APP.id, "presence-lobby"), "visits": visits})


# --- urls.py

urlpatterns = [
    path("", page),
    path("settings", show_settings),
    path("prices", publish),
    path("pusher/auth", authorize),
    path("visits", count),
]

# --- the program


async def on_member_added(app_id: str, event: AppEvent) -> None:
    """A hook: called in the loop, not in a thread of the views'."""
    del app_id
    visits[event.user_id or ""] += 1


@contextmanager
def broker_in_a_thread() -> Iterator[None]:
    """Run a loop with the broker beside the block, and end it with that."""
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stopping = asyncio.Event()
        async with open_broker(BrokerConfig(apps=[APP]), listen=BROKER) as broker:
            broker.on("member_added", on_member_added)
            opened.update(broker=broker.sync, port=broker.server.port)
            started.set_result((asyncio.get_running_loop(), stopping))
            await stopping.wait()
            # Clients are told to come back, to the next process, instead of being cut off.
            await broker.server.drain(within_s=1)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(asyncio.run, run())
        running.add_done_callback(lambda _: started.cancel())
        try:
            loop, stopping = started.result()
        except CancelledError:
            running.result()  # raises why it could not start
            raise
        try:
            yield
        finally:
            loop.call_soon_threadsafe(stopping.set)
            running.result()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # what waitress takes for Ctrl-C
    with broker_in_a_thread():
        waitress.serve(get_wsgi_application(), listen=WEB, threads=8)


if __name__ == "__main__":
    main()
