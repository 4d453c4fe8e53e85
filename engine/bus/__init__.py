"""How publications reach other nodes. One node needs only :class:`~engine.bus.local.LocalBus`."""
