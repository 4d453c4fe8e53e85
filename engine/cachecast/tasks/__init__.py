"""Every long-running task that the Broker owns. If it is not here, it is not one.

They run in the nursery of ``open_broker`` and know neither each other nor the server.
"""
