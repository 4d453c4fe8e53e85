"""What the target supports, found out before a run by a guest or two on channels of their own.

What is missing is no fault: a profile that has no point without it does not run, any other goes on
and says what it did without. Nothing is asked that the plan does not need.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from cachecast_load.crowd.block import Block
from cachecast_load.crowd.client import OPEN, Client
from cachecast_load.crowd.profile import Profile
from cachecast_load.plan.features import Feature
from cachecast_load.profiles import profile_class
from cachecast_load.profiles.encrypted import master_cipher
from cachecast_load.pusher import protocol as pusher
from cachecast_load.run.asking import publish

if TYPE_CHECKING:
    from collections.abc import Callable, Set

    from cachecast_load.crowd.session import Session
    from cachecast_load.net.reactor import Reactor
    from cachecast_load.plan.model import Plan

# How long an answer is waited for. Only what is missing costs that time, and a target that is
# merely slow must not be taken for one without the feature.
PATIENCE_S = 3.0
# Once is chance: a target that loses an event, or tells a false miss, is what the run is to find.
_TRIES = 3
_EMPTY = 0


class UnsupportedError(Exception):
    """The profile has no point at this target; the text says what is missing and how it showed."""


@dataclass(slots=True)
class _Heard:
    """What one guest was told so far; keys are channel numbers."""

    successes: dict[int, Any] = field(default_factory=dict)
    misses: set[int] = field(default_factory=set)
    channels: set[str] = field(default_factory=set)
    shared_secrets: dict[int, str] = field(default_factory=dict)
    refusal: str = ""


class _Guest(Profile):
    """Subscribes when it is told to, and remembers what came."""

    name = "support"

    def __init__(self, session: Session, kind: str) -> None:
        super().__init__(session.plan, session)
        self.kind = kind

    @override
    def channel_prefix(self, channel: int) -> str:
        """Return the kind that is asked about."""
        del channel
        return self.kind

    @override
    def channel_name(self, channel: int) -> str:
        """Return a name that no run uses."""
        name = f"{self.kind}lt-{self.session.run:04x}-ask-{channel}"
        self._numbers[name] = channel
        return name

    @override
    def welcomed(self, client: Client) -> None:
        """Wait to be told."""

    @override
    def subscribed(self, client: Client, channel: int, data: object) -> None:
        """Remember what came with the confirmation."""
        client.memory.successes[channel] = data

    @override
    def joined(self, client: Client, channel: int, seq: int) -> None:
        """Remember a miss; values come without our stamp."""
        del seq
        client.memory.misses.add(channel)

    @override
    def refused(self, client: Client, code: object, text: str) -> None:
        """Remember an error."""
        client.memory.refusal = f"pusher:error {code}: {text}"

    @override
    def other_event(self, client: Client, message: dict[str, Any], now_us: int) -> None:
        """Remember where an event came."""
        del now_us
        client.memory.channels.add(message["channel"])

    @override
    def granted(self, client: Client, channel: int, grant: dict[str, Any]) -> None:
        """Remember a key."""
        super().granted(client, channel, grant)
        if "shared_secret" in grant:
            client.memory.shared_secrets[channel] = grant["shared_secret"]

    @override
    def closed(self, client: Client, code: int, *, was_open: bool) -> None:
        """Do not come back."""


def fit_to_target(plan: Plan, session: Session, reactor: Reactor) -> tuple[Plan, list[str]]:
    """Find out what the plan needs and the target lacks.

    Returns:
        The plan that does without, and a note for each thing that is missing.

    Raises:
        UnsupportedError: the profile has no point without it, or the auth endpoint is of no use.
    """
    notes: list[str] = []
    for kind, wanted in profile_class(plan.profile).features(plan).items():
        for feature, how in _Asking(session, reactor, kind).lacks(wanted).items():
            fitted = profile_class(plan.profile).without(plan, kind, feature)
            if fitted is None:
                raise UnsupportedError(f"the target does not {feature.does_not(kind)} ({how})")
            plan, consequence = fitted
            why = f"{how}; {consequence}" if consequence else how
            notes.append(f"not supported: {feature.title(kind)} ({why})")
    return plan, notes


class _Asking:
    """The guests on channels of one kind, and what they find.

    Args:
        session: a run mark of its own keeps these channels apart from the run's.
        reactor: turned while something is waited for.
        kind: of channel.
    """

    def __init__(self, session: Session, reactor: Reactor, kind: str) -> None:
        self._session = session
        self._reactor = reactor
        self._kind = kind
        self._profile = _Guest(session, kind)
        self._block = Block(session, self._profile, reactor, 0)
        self._guests: list[Client] = []

    def lacks(self, wanted: Set[Feature]) -> dict[Feature, str]:
        """Return what of these is missing, and how it showed.

        Raises:
            UnsupportedError: the auth endpoint does not grant what such channels need.
        """
        if not wanted:
            return {}
        try:
            guest = self._arrive()
            if guest is None:
                return {}  # it could just be reached: whatever this is, the run shows it
            if not self._subscribe(guest, _EMPTY):
                return self._refused(guest)
            self._check_key(guest)
            found: dict[Feature, str] = {}
            if Feature.ROSTERS in wanted:
                found |= self._without_roster(guest)
            if Feature.LAST_VALUES in wanted:
                found |= self._without_values(guest)
            if Feature.CLIENT_EVENTS in wanted:
                found |= self._without_client_events(guest)
            return found
        finally:
            for guest in self._guests:
                guest.leave()

    def _arrive(self) -> Client | None:
        client = Client(len(self._guests), self._block, self._profile)
        client.memory = _Heard()
        self._guests.append(client)
        client.connect(socket=0)
        timeout_s = self._session.plan.limits.connect_timeout_s
        self._reactor.run_until(lambda: bool(client.socket_id), timeout_s)
        return client if client.state == OPEN else None

    def _subscribe(self, guest: Client, channel: int) -> bool:
        counts, heard = guest.tally.counts, guest.memory
        before = counts["subscribe_failed"]
        self._profile.authorize(guest, channel, self._profile.channel_data(guest))
        self._wait(
            lambda: (
                channel in heard.successes
                or counts["subscribe_failed"] > before
                or guest.state != OPEN
            )
        )
        return channel in heard.successes

    def _wait(self, is_there: Callable[[], bool]) -> bool:
        self._reactor.run_until(is_there, PATIENCE_S)
        return is_there()

    def _refused(self, guest: Client) -> dict[Feature, str]:
        """Tell a kind that is not known from a subscription that would be refused anyway."""
        kinds = list(guest.tally.errors)
        if kinds and kinds[-1].startswith("auth endpoint"):
            raise UnsupportedError(
                f"the auth endpoint is of no use for {self._kind} channels: {kinds[-1]}"
            )
        how = guest.memory.refusal or (kinds[-1] if kinds else f"no answer within {PATIENCE_S:g} s")
        plainest = "private-" if pusher.needs_auth(self._kind) else ""
        witness = _Asking(self._session, self._reactor, plainest)
        return {Feature.SUBSCRIPTIONS: how} if witness._takes_any() else {}

    def _takes_any(self) -> bool:
        guest = self._arrive()
        takes = guest is not None and self._subscribe(guest, _EMPTY)
        if guest is not None:
            guest.leave()
        return takes

    def _check_key(self, guest: Client) -> None:
        secret = guest.memory.shared_secrets.get(_EMPTY)
        plan = self._session.plan
        if secret is None or "encrypted" not in (plan.profile, *dict(plan.behaviour.mix)):
            return
        ours = master_cipher(self._session, self._profile.channel_name(_EMPTY)).shared_secret
        if secret != ours:
            raise UnsupportedError(
                "the auth endpoint grants keys of another master key than the publisher's: give it"
                " as --encryption-key"
            )

    def _without_roster(self, guest: Client) -> dict[Feature, str]:
        data = guest.memory.successes[_EMPTY]
        presence = data.get("presence") if isinstance(data, dict) else None
        if isinstance(presence, dict) and isinstance(presence.get("hash"), dict):
            return {}
        return {Feature.ROSTERS: f"subscription_succeeded came with {str(data)[:60]}"}

    def _without_values(self, guest: Client) -> dict[Feature, str]:
        heard = guest.memory
        has_miss = self._wait(lambda: _EMPTY in heard.misses)
        got = ""
        for channel in range(_EMPTY + 1, _EMPTY + 1 + _TRIES):
            name = self._profile.channel_name(channel)
            status, _, _ = publish(self._session, self._reactor, 0, name, "x")
            if not 200 <= status < 300 or not self._subscribe(guest, channel):
                return {}
            self._wait(lambda: name in heard.channels or channel in heard.misses)  # noqa: B023
            if name in heard.channels and not has_miss:
                how = f"nothing came on an empty channel within {PATIENCE_S:g} s"
                return {Feature.CACHE_MISS: how}
            if name in heard.channels:
                return {}
            got = "a miss"
            if channel not in heard.misses:
                got = f"nothing within {PATIENCE_S:g} s"
                break
        return {Feature.LAST_VALUES: f"whoever subscribed after a publish got {got}"}

    def _without_client_events(self, guest: Client) -> dict[Feature, str]:
        other = self._arrive()
        if other is None or not self._subscribe(other, _EMPTY):
            return {}
        name = self._profile.channel_name(_EMPTY)
        heard = guest.memory
        for _ in range(_TRIES):
            guest.send(pusher.client_event_message(name, "client-lt", "x"))
            self._wait(lambda: name in other.memory.channels or bool(heard.refusal))
            if name in other.memory.channels:
                return {}
            if heard.refusal:
                break
        how = heard.refusal or f"{_TRIES} that were sent did not arrive"
        return {Feature.CLIENT_EVENTS: how}
