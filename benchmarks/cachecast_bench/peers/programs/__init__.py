"""The smallest servers around WebSocket libraries.

Arguments are a port each for clients and control.

Control connections bring the records of `cachecast_bench.dialects.websocket`; the channel is the
path.
"""
