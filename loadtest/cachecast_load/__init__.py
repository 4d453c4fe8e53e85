"""Cachecast's load test: what does a Pusher-compatible deployment withstand?

It holds thousands of subscribers, publishes through the HTTP API on a fixed schedule, accounts
for every single event at every single subscriber, and ends with a verdict that it is prepared to
refuse:

    cachecast load run fanout --target ws://127.0.0.1:6001 \
        --app-id 4242 --key app-key --secret app-secret --report out/

Exit code 0: every objective holds. 1: one does not. 2: the run is invalid, and the report says why.
3: the harness itself failed. `docs/load-testing.md` is the five-minute way in.

The words
---------

A **profile** says what subscribers do (`profiles/`, one small class each). A **plan** says how
much of it, for how long, in which shape (`plan`, `shapes`, `knee`). The **director** walks a run
through its phases and sends **orders**. A **block** is some hundreds of subscribers on one epoll
loop, a **publisher** a share of the channels; each is one Locust user and sits on one **seat**
(`station`). What they measure goes into a **recorder**, is added up by the **collector**, and is
judged by the **ledger** (was everything delivered, once, in order, fresh?) and the **SLOs**.

A deployment may be several nodes. A **socket** is then the number of the target a subscriber is at,
an **entrance** the URL by which an event went in, and a **way** the pair of both. What belongs to
one of several is recorded in its own **tally**, once, and added to the whole by the report.

How it is built
---------------

    cli  locustfile                          commands
    swarm/                                   what Locust sees: users, master, workers, its page
    report/                                  text, HTML, JUnit, CSV, comparisons
    run/                                     the run as a whole: director, collector, health, result
    profiles/                                what subscribers do, one small class each
    crowd/                                   blocks, clients, publishers, and what a profile is
    plan/                                    what shall be done, and at what
    pusher/  measures/  net/                 the protocol; pure arithmetic; sockets and bytes

Everything below `swarm` runs without Locust, on any reactor, which is how most of it is tested.
Nothing here imports the engine: a harness that shares code with its target shares its mistakes.

What makes the figures true
---------------------------

* **Open model** (`schedule`): publishes leave when planned, however slow the answers are, and
  latency counts from the planned time. The time since the real departure is kept too, so the
  difference shows.
* **Every event is stamped** (`stamp`) with run, channel, sequence number, times and a checksum;
  receivers check all of it. Order is demanded exactly where it was promised: not between
  publishes that were under way together.
* **Histograms merge exactly** (`histogram`): 0.1 % wide buckets of microseconds, added up across
  blocks, processes and machines before any percentile is taken.
* **The generator watches itself** (`health`): its lag, its processor, its late departures. Where
  it was the bottleneck the verdict is INVALID, with what to do.
* **Clocks** (`clock`): one machine has one; between machines the offset is measured, its error is
  shown, and no latency is claimed below it.
"""
