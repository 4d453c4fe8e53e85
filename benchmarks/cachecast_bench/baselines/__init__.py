"""The yardsticks: the least that any server would have to do, as programs of their own.

`raw_loop` is the limit of fan-out in Python: one frame, built once, and one non-blocking `send` for
each subscriber. `responder` is the limit of an HTTP publish: parse with httptools, answer, do
nothing else.
"""
