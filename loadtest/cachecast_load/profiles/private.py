"""private: as fanout, with every subscription signed, here or by the deployment's endpoint."""

from __future__ import annotations

from typing import ClassVar

from cachecast_load.crowd.profile import Defaults, Profile


class Private(Profile):
    """Private channels; `--auth-endpoint` measures the deployment's own authorizer as well."""

    name = "private"
    summary = "private channels: signed subscriptions, here or by the auth endpoint"
    prefix = "private-"
    defaults: ClassVar[Defaults] = {"load": {"subscribers": 500, "channels": 10, "rate": 50.0}}
