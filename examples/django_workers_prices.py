"""Django under WSGI in several processes, which publish over HTTP to a node beside them.

    cachecast serve --config django_workers_prices.toml
    gunicorn django_workers_prices:application --workers 2 --bind 127.0.0.1:8000
    curl -d usd=1.08 http://127.0.0.1:8000/prices   # and http://127.0.0.1:8000/?user=ann

Each process of gunicorn would have a broker of its own, with clients of its own. So there is one
node for all of them, and they use what every Django project with Pusher uses: the library `pusher`.
What a hook is inside of one process, a webhook is here.
"""

from __future__ import annotations

import os
from pathlib import Path

import pusher
from django.conf import settings
from django.core.cache import cache
from django.core.wsgi import get_wsgi_application
from django.http import FileResponse, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

# --- settings.py

#: Where the node is.
BROKER = os.environ.get("BROKER", "127.0.0.1:6001")

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="yours: from the environment",
    CACHES={
        "default": {
            # What all processes see; yours is most likely Redis.
            "BACKEND": "django.core.cache.backends.filebased.FileBasedCache",
            "LOCATION": os.environ.get("VISITS", "/tmp/cachecast-example-visits"),  # noqa: S108
        }
    },
)

KEY, SECRET = "app-key", "app-secret"  # yours: from the environment
HOST, _, PORT = BROKER.rpartition(":")
channels = pusher.Pusher(
    app_id="4242",
    key=KEY,
    secret=SECRET,
    host=HOST,
    port=int(PORT),
    ssl=False,
)

# --- views.py


def page(request: HttpRequest) -> HttpResponseBase:
    del request
    return FileResponse(Path(__file__).with_name("page.html").open("rb"))


def show_settings(request: HttpRequest) -> HttpResponse:
    del request
    return JsonResponse({"key": KEY, "port": int(PORT)})


@csrf_exempt  # for curl; a page of your own sends the token
@require_POST
def publish(request: HttpRequest) -> HttpResponse:
    """Publish: whoever listens has it at once, and whoever comes within 30 minutes too."""
    channels.trigger("private-cache-prices", "tick", {"usd": float(request.POST["usd"])})
    return HttpResponse(status=204)


@csrf_exempt  # pusher-js can send the token, see its option channelAuthorization.headers
@require_POST
def authorize(request: HttpRequest) -> HttpResponse:
    """What pusher-js asks before it joins a private or presence channel."""
    user = request.COOKIES.get("user")  # yours: request.user
    if user is None:
        return HttpResponse("Sign in first", status=403)
    try:
        leave = channels.authenticate(
            request.POST["channel_name"], request.POST["socket_id"], {"user_id": user}
        )
    except ValueError as error:
        return HttpResponse(str(error), status=400)
    return JsonResponse(leave)


@csrf_exempt  # it is signed instead
@require_POST
def webhook(request: HttpRequest) -> HttpResponse:
    """The node tells what happened; whichever process gets the request counts it for all."""
    told = channels.validate_webhook(
        request.headers.get("X-Pusher-Key"),
        request.headers.get("X-Pusher-Signature"),
        request.body.decode(),
    )
    if told is None:
        return HttpResponse("Not signed by our app", status=401)
    for event in told["events"]:
        if event["name"] == "member_added":
            visits = cache.get("visits", {})
            visits[event["user_id"]] = visits.get(event["user_id"], 0) + 1
            cache.set("visits", visits)
    return HttpResponse(status=204)


def count(request: HttpRequest) -> HttpResponse:
    """Who is here now, as the node knows it, and how often each has come."""
    del request
    users = channels.users_info("presence-lobby")["users"]
    here = [user["id"] for user in users]
    return JsonResponse({"here": here, "visits": cache.get("visits", {})})


# --- urls.py

urlpatterns = [
    path("", page),
    path("settings", show_settings),
    path("prices", publish),
    path("pusher/auth", authorize),
    path("pusher/webhook", webhook),
    path("visits", count),
]

# --- wsgi.py

application = get_wsgi_application()
