"""A Pusher-compatible server that lies in known amounts. A program of its own; loopback only.

    python saboteur.py '{"lose": 7, "double": 3}'

It speaks enough of the protocol for every profile (all channel kinds, cache, presence, client
events, signed publishes) through `websockets` and `h11`, so none of the harness's own code is on
this side. Faults are given as a JSON object; what was really done is counted and served as JSON
at `GET /faults`.

Faults that change deliveries, each done exactly as often as the number says, spread over the first
deliveries at every `stride`-th:
    lose, double, reorder, stale (an older value again), alter, misroute, delay (by `delay_s`),
    rename (the event), lengthen (the data), cut (no JSON any more), bury (the data in an object)
Faults of the cache: old_value (a replay of the value before), false_miss, expired (ignores the TTL)
Faults of connections: close_code (after the handshake), close_at (that many deliveries later),
    refuse_upgrade (HTTP status), garbage (bytes instead of frames), silent (accepts, says nothing),
    die_after (deliveries until the process ends), publish_status (answers publishes so),
    subscribe_error, late_events (seconds every frame is held back), conflate_metrics (a number),
    stall_at (that many deliveries later the process stands still for stall_s)
What it does not know, by name in the list `lacks`: cache, cache_miss, lifetime, rosters,
    client_events (refused), client_events_told (swallowed), encrypted, channels_api
Other habits: errors_as_ok (200 with the error in the body, as soketi answers), own_users (its auth
    endpoint chooses the user ids: "each" request another, "one" for everybody), auth_body ("json":
    no other request is understood), own_keys (the endpoint grants keys of another master key),
    no_keys (it grants none), answers_page (a status: a web site is where the API should be)
Faults of a deployment: clock_s (its clock is so far ahead), refuse_code (closes instead of
    welcoming), protocols (only these are spoken), mute (upgrades, says nothing), open_auth (wrong
    signatures do), no_pong, joined_s (events wait and leave together), limit_bytes (of an event),
    status_in_body (refusals are HTTP 200), cut_after_s (connections end without a word), respell
    (blanks into JSON), drop (right after the upgrade)
What nobody expects: says (texts, as they are, after each subscription that a run asked for), grant
    (fields laid over those of the auth endpoint), roster (the same over a roster's)
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import selectors
import socket
import sys
import time
from collections import Counter, defaultdict, deque
from email.utils import formatdate
from urllib.parse import parse_qsl, urlsplit

import h11
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

KEY, SECRET, APP_ID = "app-key", "app-secret", "4242"
MASTER_KEY = b"0123456789abcdef0123456789abcdef"
DELIVERY_FAULTS = ("lose", "double", "reorder", "stale", "alter", "misroute", "delay")
# Frames whose payload is whole, and that no SDK would hand to whoever waits for it.
WRAPPINGS = ("rename", "lengthen", "cut", "bury")


class Peer:
    def __init__(self, server, sock):
        self.server, self.sock = server, sock
        self.inbox, self.outbox = b"", b""
        self.ws = None
        self.http = None
        self.channels = {}
        self.held = {}
        self.socket_id = f"{len(server.peers) + 1}.{id(self) % 10**9}"
        self.closing = False

    def put(self, data):
        self.outbox += data
        self.flush()

    def flush(self):
        while self.outbox:
            try:
                sent = self.sock.send(self.outbox)
            except BlockingIOError:
                break
            except OSError:
                return self.server.drop(self)
            self.outbox = self.outbox[sent:]
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.outbox else 0)
        if self.sock.fileno() >= 0:
            self.server.selector.modify(self.sock, events, self)
            if self.closing and not self.outbox:
                self.server.drop(self)
        return None

    def say(self, message):
        self.say_raw(json.dumps(message))

    def say_raw(self, text):
        self.ws.send_text(text.encode())
        self.put(b"".join(self.ws.data_to_send()))


class Saboteur:
    def __init__(self, faults):
        self.faults = faults
        self.done = Counter()
        self.selector = selectors.DefaultSelector()
        self.listener = socket.create_server(
            ("127.0.0.1", int(faults.get("port", 0))), backlog=4096
        )
        self.listener.setblocking(False)
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.peers = {}
        self.subscribers = defaultdict(dict)
        self.cache = {}
        self.before = {}
        self.history = defaultdict(lambda: deque(maxlen=4))
        self.deliveries = 0
        self.stride = faults.get("stride", 13)
        self.later = []
        self.ttl = faults.get("ttl", 1800)

    # --- loop -----------------------------------------------------------------------------------

    def run(self):
        print(f"ready ws://127.0.0.1:{self.listener.getsockname()[1]}", flush=True)
        while True:
            wait = max(0.0, self.later[0][0] - time.monotonic()) if self.later else 1.0
            for key, events in self.selector.select(wait):
                if key.data is None:
                    self.accept()
                    continue
                if events & selectors.EVENT_WRITE:
                    key.data.flush()
                if events & selectors.EVENT_READ and key.data.sock.fileno() >= 0:
                    self.read(key.data)
            self.later.sort(key=lambda entry: entry[0])
            while self.later and self.later[0][0] <= time.monotonic():
                _, peer, message = self.later.pop(0)
                if message is None and peer.sock.fileno() >= 0:
                    self.drop(peer)
                elif peer.sock.fileno() >= 0 and not peer.closing:
                    peer.say(message)

    def accept(self):
        for _ in range(64):
            try:
                sock, _ = self.listener.accept()
            except BlockingIOError:
                return
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            peer = Peer(self, sock)
            self.peers[sock] = peer
            self.selector.register(sock, selectors.EVENT_READ, peer)

    def drop(self, peer):
        if self.peers.pop(peer.sock, None):
            self.selector.unregister(peer.sock)
            for channel in list(peer.channels):
                self.leave(peer, channel)
            peer.sock.close()

    def read(self, peer):
        try:
            data = peer.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop(peer)
        elif peer.ws is not None:
            self.websocket(peer, data)
        elif peer.http is not None:
            self.http(peer, data)
        else:
            peer.inbox += data
            if b"\r\n\r\n" in peer.inbox:
                first, peer.inbox = peer.inbox, b""
                if b"upgrade: websocket" in first.lower():
                    self.upgrade(peer, first)
                else:
                    peer.http = h11.Connection(h11.SERVER)
                    self.http(peer, first)

    # --- HTTP -----------------------------------------------------------------------------------

    def http(self, peer, data):
        peer.http.receive_data(data)
        while True:
            event = peer.http.next_event()
            if isinstance(event, h11.Request):
                peer.request, peer.body = event, b""
            elif isinstance(event, h11.Data):
                peer.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                status, body = self.answer(peer.request, peer.body)
                if self.faults.get("errors_as_ok") and status >= 400:
                    error = {"error": body.decode().strip(), "code": status}
                    status, body = 200, json.dumps(error).encode()
                headers = [("content-length", str(len(body))), ("content-type", "text/plain")]
                headers.append(("date", formatdate(self.unix_now(), usegmt=True)))
                response = h11.Response(status_code=status, headers=headers)
                out = peer.http.send(response) + peer.http.send(h11.Data(data=body))
                peer.put(out + peer.http.send(h11.EndOfMessage()))
                if peer.http.our_state is h11.MUST_CLOSE:
                    return self.drop(peer)
                peer.http.start_next_cycle()
            else:
                return None

    def answer(self, request, body):
        parts = urlsplit(request.target.decode())
        if parts.path == "/faults":
            return 200, json.dumps(self.done).encode()
        if parts.path == "/metrics":
            admitted = self.faults.get("conflate_metrics", 0)
            return 200, f"cachecast_conflated_total {admitted}\n".encode()
        if parts.path == "/auth":
            return self.authorize(body)
        if self.faults.get("answers_page"):
            return self.faults["answers_page"], b"<html><body>Welcome!</body></html>"
        status = self.faults.get("publish_status")
        if status:
            return status, b"the saboteur says no\n"
        problem = self.verify(request.method.decode(), parts, body)
        if problem and self.faults.get("status_in_body"):
            return 200, json.dumps({"error": problem, "code": 401}).encode()
        if problem:
            return 401, problem.encode()
        if parts.path.endswith("/channels"):
            return 200, json.dumps({"channels": {}}).encode()
        if len(body) > self.faults.get("limit_bytes", 2**20):
            return 413, b"The data content of this event exceeds the allowed maximum\n"
        if parts.path.endswith("/events"):
            event = json.loads(body)
            for channel in event.get("channels") or [event["channel"]]:
                self.publish(channel, event["name"], event["data"])
            return 200, b"{}"
        if "/channels/" in parts.path and not self.lacks("channels_api"):
            name = parts.path.rsplit("/", 1)[1]
            cached = None if self.lacks("lifetime") else self.cached(name)
            ttl = int(self.cache[name][0] - time.monotonic() + 0.999) if cached else None
            entry = {"data": cached["data"], "ttl": ttl} if cached else None
            return 200, json.dumps(
                {"occupied": bool(self.subscribers[name]), "cache": entry}
            ).encode()
        return 404, b"404 NOT FOUND\n"

    def authorize(self, body):
        if self.faults.get("auth_status"):
            return self.faults["auth_status"], b"forbidden\n"
        if self.faults.get("auth_body") == "json":
            try:
                form = json.loads(body)
            except ValueError:
                return 400, b"not JSON\n"
        else:
            form = dict(parse_qsl(body.decode()))
        if "socket_id" not in form:
            return 400, b"a form is wanted\n"
        channel = form["channel_name"]
        text, grant = f"{form['socket_id']}:{channel}", {}
        if channel.startswith("presence-"):
            user = form.get("user_id", "nobody")
            if self.faults.get("own_users"):
                self.done["grants"] += 1
                user = f"x{self.done['grants']}" if self.faults["own_users"] == "each" else "x"
            grant["channel_data"] = json.dumps({"user_id": user})
            grant |= self.faults.get("grant", {})
            text += f":{grant['channel_data']}"
        if channel.startswith("private-encrypted-") and not self.faults.get("no_keys"):
            key = hashlib.sha256(channel.encode() + MASTER_KEY).digest()
            if self.faults.get("own_keys"):
                key = key[::-1]
            grant["shared_secret"] = base64.b64encode(key).decode()
        grant |= self.faults.get("grant", {})
        return 200, json.dumps({"auth": f"{KEY}:{_sign(text)}", **grant}).encode()

    def verify(self, method, parts, body):
        params = dict(parse_qsl(parts.query))
        given = params.pop("auth_signature", "")
        if params.get("auth_key") != KEY:
            return "Unknown auth_key\n"
        if body and params.get("body_md5") != hashlib.md5(body).hexdigest():
            return "Invalid body_md5\n"
        if abs(int(params["auth_timestamp"]) - self.unix_now()) > 600:
            return "Timestamp expired\n"
        plain = "&".join(f"{k}={v}" for k, v in sorted(params.items()))
        return "" if _sign(f"{method}\n{parts.path}\n{plain}") == given else "Invalid signature\n"

    def unix_now(self):
        return time.time() + self.faults.get("clock_s", 0)

    # --- WebSocket ------------------------------------------------------------------------------

    def upgrade(self, peer, data):
        if self.faults.get("refuse_upgrade"):
            peer.put(
                f"HTTP/1.1 {self.faults['refuse_upgrade']} No\r\nContent-Length: 0\r\n\r\n".encode()
            )
            peer.closing = True
            return peer.flush()
        if self.faults.get("silent"):
            return None
        peer.ws = ServerProtocol(max_size=2**20)
        peer.ws.receive_data(data)
        request = next(e for e in peer.ws.events_received() if isinstance(e, Request))
        peer.ws.send_response(peer.ws.accept(request))
        peer.put(b"".join(peer.ws.data_to_send()))
        if self.faults.get("garbage"):
            return peer.put(b"\xff\xfe these are not frames \x00\x01")
        if self.faults.get("drop"):
            return self.drop(peer)
        if f"/app/{KEY}?" not in request.path:
            text = "App key not in this cluster. Did you forget to specify the cluster?"
            peer.say({"event": "pusher:error", "data": {"code": 4001, "message": text}})
            return self.close(peer, 4001, text)
        if self.faults.get("mute"):
            return None
        code = self.faults.get("refuse_code")
        spoken = self.faults.get("protocols")
        if spoken and not any(f"protocol={number}&" in request.path + "&" for number in spoken):
            code = 4007
        if code:
            peer.say({"event": "pusher:error", "data": {"code": code, "message": "no"}})
            return self.close(peer, code, "no")
        if self.faults.get("cut_after_s"):
            self.later.append((time.monotonic() + self.faults["cut_after_s"], peer, None))
        data = json.dumps({"socket_id": peer.socket_id, "activity_timeout": 120})
        peer.say({"event": "pusher:connection_established", "data": data})
        if self.faults.get("close_code") and not self.faults.get("close_at"):
            return self.close(peer, self.faults["close_code"], "the saboteur closes")
        return None

    def close(self, peer, code, reason):
        self.done[f"closed_{code}"] += 1
        peer.ws.send_close(code, reason)
        peer.closing = True
        peer.put(b"".join(peer.ws.data_to_send()))

    def websocket(self, peer, data):
        peer.ws.receive_data(data)
        for event in peer.ws.events_received():
            if isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                self.message(peer, json.loads(event.data))
            elif isinstance(event, Frame) and event.opcode is Opcode.CLOSE:
                peer.closing = True
        if peer.sock.fileno() >= 0:
            peer.put(b"".join(peer.ws.data_to_send()))

    def message(self, peer, message):
        event, data = message["event"], message.get("data")
        if event == "pusher:ping" and self.faults.get("no_pong"):
            return
        if event == "pusher:ping":
            peer.say({"event": "pusher:pong", "data": "{}"})
        elif event == "pusher:subscribe":
            self.subscribe(peer, data["channel"], data.get("auth", ""), data.get("channel_data"))
        elif event == "pusher:unsubscribe":
            self.leave(peer, data["channel"])
        elif event.startswith("client-") and self.lacks("client_events"):
            text = "The app does not have client messaging enabled."
            peer.say({"event": "pusher:error", "data": {"code": 4301, "message": text}})
        elif event.startswith("client-") and not self.lacks("client_events_told"):
            frame = {"event": event, "channel": message["channel"], "data": data}
            for other in list(self.subscribers[message["channel"]].values()):
                if other is not peer or (_is_of_a_run(frame["channel"]) and self.take("echo")):
                    self.deliver(other, frame)

    def subscribe(self, peer, channel, auth, channel_data):
        if channel.startswith(("private-", "presence-")):
            text = f"{peer.socket_id}:{channel}" + (f":{channel_data}" if channel_data else "")
            is_signed = auth == f"{KEY}:{_sign(text)}" or self.faults.get("open_auth")
            if not is_signed or self.faults.get("subscribe_error"):
                text = f"Invalid signature: Expected HMAC SHA256 hex digest of {text}"
                peer.say({"event": "pusher:error", "data": {"code": None, "message": text}})
                return
        if channel.startswith("private-encrypted-") and self.lacks("encrypted"):
            text = f"Encrypted channels are not known here: {channel}"
            peer.say({"event": "pusher:error", "data": {"code": None, "message": text}})
            return
        body = "{}"
        if channel.startswith("presence-") and not self.lacks("rosters"):
            member = json.loads(channel_data)
            body = self.join(peer, channel, member)
        self.subscribers[channel][id(peer)] = peer
        peer.channels.setdefault(channel, None)
        peer.say(
            {"event": "pusher_internal:subscription_succeeded", "channel": channel, "data": body}
        )
        if "cache-" in channel[:24] and not self.lacks("cache"):
            self.replay(peer, channel)
        if _is_of_a_run(channel):
            for text in self.faults.get("says", ()):
                peer.say_raw(text.replace("CHANNEL", channel))

    def join(self, peer, channel, member):
        peer.channels[channel] = user = member["user_id"]
        present = {p.channels.get(channel) for p in self.subscribers[channel].values()}
        if user not in present:
            added = json.dumps({"user_id": user, "user_info": member.get("user_info")})
            for other in list(self.subscribers[channel].values()):
                if not self.take("lose_member"):
                    other.say(
                        {"event": "pusher_internal:member_added", "channel": channel, "data": added}
                    )
        ids = sorted(present | {user})
        roster = {"ids": ids, "hash": dict.fromkeys(ids), "count": len(ids)}
        return json.dumps({"presence": roster | self.faults.get("roster", {})})

    def leave(self, peer, channel):
        self.subscribers[channel].pop(id(peer), None)
        user = peer.channels.pop(channel, None)
        if user is None or user in {
            p.channels.get(channel) for p in self.subscribers[channel].values()
        }:
            return
        for other in list(self.subscribers[channel].values()):
            data = json.dumps({"user_id": user})
            other.say({"event": "pusher_internal:member_removed", "channel": channel, "data": data})

    # --- cache ----------------------------------------------------------------------------------

    def cached(self, channel):
        entry = self.cache.get(channel)
        if entry is None or (time.monotonic() >= entry[0] and not self.faults.get("expired")):
            return None
        return entry[1]

    def replay(self, peer, channel):
        frame = self.cached(channel)
        if frame is None or not _is_of_a_run(channel):
            pass
        elif self.take("false_miss"):
            frame = None
        elif channel in self.before and self.take("old_value"):
            frame = self.before[channel]
        if frame is None and self.lacks("cache_miss"):
            return
        if frame is None:
            peer.say({"event": "pusher:cache_miss", "channel": channel, "data": "{}"})
        else:
            peer.say(frame)

    def publish(self, channel, name, data):
        frame = {"event": name, "channel": channel, "data": data}
        if "cache-" in channel[:24]:
            if channel in self.cache:
                self.before[channel] = self.cache[channel][1]
            self.cache[channel] = (time.monotonic() + self.ttl, frame)
        self.history[channel].append(frame)
        for peer in list(self.subscribers[channel].values()):
            self.deliver(peer, frame)

    # --- deliveries and their faults ------------------------------------------------------------

    def lacks(self, feature):
        """Whether it does not know a feature."""
        return feature in self.faults.get("lacks", ())

    def take(self, fault):
        """Whether to commit a fault now; each at most as often as asked for."""
        if self.done[fault] < self.faults.get(fault, 0):
            self.done[fault] += 1
            return True
        return False

    def deliver(self, peer, frame):
        if peer.closing:
            return
        self.deliveries += 1
        if self.deliveries == self.faults.get("die_after"):
            os._exit(9)
        if self.deliveries == self.faults.get("stall_at"):
            time.sleep(self.faults["stall_s"])
        if self.faults.get("late_events"):
            self.later.append((time.monotonic() + self.faults["late_events"], peer, frame))
            return
        if self.faults.get("respell") and frame["data"].startswith("{"):
            frame = {**frame, "data": json.dumps(json.loads(frame["data"]), indent=1)}
        if self.faults.get("joined_s"):
            due = self.later[0][0] if self.later else time.monotonic() + self.faults["joined_s"]
            self.later.append((due, peer, frame))
            return
        channel = frame["channel"]
        if channel in peer.held:
            # The second half of a reordering: the newer one first.
            older = peer.held.pop(channel)
            peer.say(frame)
            peer.say(older)
            return
        fault = ""
        if self.deliveries % self.stride == 0 and len(self.history[channel]) > 1:
            todo = [
                f for f in (*DELIVERY_FAULTS, *WRAPPINGS) if self.done[f] < self.faults.get(f, 0)
            ]
            fault = todo[0] if todo else ""
        if fault:
            self.done[fault] += 1
        self.commit(fault, peer, frame)
        if self.faults.get("close_at") == self.deliveries:
            self.close(peer, self.faults["close_code"], "the saboteur closes")

    def commit(self, fault, peer, frame):
        if fault == "lose":
            return
        if fault == "reorder":
            peer.held[frame["channel"]] = frame
            return
        if fault == "delay":
            self.later.append((time.monotonic() + self.faults.get("delay_s", 0.2), peer, frame))
            return
        if fault == "alter":
            data = frame["data"]
            peer.say({**frame, "data": data[:-1] + ("x" if data[-1] != "x" else "y")})
            return
        if fault == "misroute":
            peer.say({**frame, "channel": "somewhere-else"})
            return
        if fault in WRAPPINGS:
            data = frame["data"]
            peer.say_raw(
                {
                    "rename": json.dumps({**frame, "event": "another"}),
                    "lengthen": json.dumps({**frame, "data": data + "0"}),
                    "cut": json.dumps(frame)[:-1],
                    "bury": json.dumps({**frame, "data": {"data": data}}),
                }[fault]
            )
            return
        peer.say(frame)
        if fault == "double":
            peer.say(frame)
        elif fault == "stale":
            peer.say(self.history[frame["channel"]][-2])


def _is_of_a_run(channel):
    """Whether faults are committed there: what is tried before a run must not use them up."""
    return "-ask-" not in channel


def _sign(text):
    return hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).hexdigest()


if __name__ == "__main__":
    Saboteur(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}).run()
