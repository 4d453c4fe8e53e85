"""Several processes on one machine: a parent, and workers that each are a whole node.

``crew`` is the parent's side: it starts workers, starts them again, tells them what it is told and
sums what they say. ``pipe`` and ``messages`` are what both talk over and in, ``shares`` what of the
node's limits is one worker's, ``desk`` the one admin address. The worker's side is
``cachecast.cli.workers``, and is little more than a node that takes its orders from a pipe.
"""
