"""How publications reach other nodes.

One node needs only :class:`~cachecast.bus.local.LocalBus`.
"""
