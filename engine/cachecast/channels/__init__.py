"""What this node holds in memory: who listens to what, who is present, what was said last.

Everything here is synchronous and takes ``now``. That is the lock: between two checkpoints of the
one event loop nobody else can look. Read ``hub`` first, then ``channel`` and ``cache``.
"""
