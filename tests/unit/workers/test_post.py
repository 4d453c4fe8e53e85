"""The place of a worker: what it knows of whoever has it."""

from __future__ import annotations

from cachecast.apps import App
from cachecast.config import FileConfig
from cachecast.metrics import Family
from cachecast.workers.messages import Beat, Report
from cachecast.workers.post import Post


def family(value):
    return Family("cachecast_a", "counter", "", [("cachecast_a_total", {}, value)])


async def test_counters_of_those_who_have_gone_stay_in_the_sum():
    post = Post(1, FileConfig(apps=(App(id="1", key="k", secret="s"),)), (), ())
    post.hear(Report([family(3.0)]))
    post.end()
    post.hear(Report([family(2.0)]))
    assert [sample[2] for one in post.families for sample in one.samples] == [5.0]
    assert post.pid == 0


async def test_it_is_as_ready_as_was_said_last():
    post = Post(1, FileConfig(apps=(App(id="1", key="k", secret="s"),)), (), ())
    post.hear(Beat(is_ready=True))
    assert post.is_ready
    post.hear(Beat(is_ready=False))
    assert not post.is_ready
