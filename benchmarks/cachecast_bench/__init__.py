"""Cachecast beside the physical limit and beside its peers, measured in one run.

    cachecast bench list
    cachecast bench run fanout storm --json result.json --plot result.svg
    cachecast bench run fanout --peers all
    cachecast bench run fanout --require 'fanout.ratio_to_raw_loop>=6'
    cachecast bench compare before.json after.json
    cachecast bench show result.json
    cachecast bench peers

What a number from here means:

* **A ratio first.** Each scenario measures its yardstick in the same run: for deliveries the
  `raw loop`, non-blocking `send` over the same number of sockets; for publishes a bare httptools
  responder. Repeats take turns, A B A B, so that a ratio is one of neighbours in time. Absolute
  numbers hold for the machine that is printed under them.
* **Everything is checked.** Every byte that every subscriber reads is compared with what was
  published. A message lost, doubled, reordered, stale, corrupted or foreign makes the run INVALID.
* **Delays start at the planned publish**, on one monotonic clock, and end when the read returns.
  A stalled server cannot hide by keeping the publisher waiting.
* **The tool may refuse.** If the generator was the bottleneck, the schedule was not kept, samples
  were too few or the cores were busy with something else, the run is INVALID, in words: exit code
  2. A requirement that is not met is exit code 1; what cannot be understood or carried out is 3.

The server has one core to itself, the generator (with this process) another. Generator and server
share no code: the engine is imported only by the programs of `inprocess`.

Reading order:

    cli, runner         the command line, and scenarios one after the other
    scenarios/          one experiment a file
    bench, loop_lag     stages (a server and its generator), samples, disturbance
    target, baselines/  the engine and the yardsticks; peers/ the others
    generator/          the clients: a process of its own; holder/ tens of thousands that only wait
    dialects/           how to speak to each server, as bytes
    verdict, compare    what may be concluded
    result, table, plot what is kept and shown

Limits: one machine, loopback (the sender pays for the receiver's TCP work, so a network card is
kinder to every server here), 20,000 descriptors a process, Linux.
"""
