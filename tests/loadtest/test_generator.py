"""The loop of a process under Locust: what becomes of its seats when it ends, or has a fault."""

import json
import subprocess
import sys

import pytest

# In a process of its own: importing it patches what other tests need.
PROGRAM = """
import json, sys
import gevent
from locust.stats import RequestStats
from cachecast_load.swarm.generator import Generator
from cachecast_load.plan.model import Plan
from cachecast_load.plan.target import make_target
from cachecast_load.run.station import BLOCK, PUBLISHER, Station, open_session

target = make_target(url="ws://127.0.0.1:9", app_id="1", key="k", secret="s")
reports = []
station = Station(open_session(Plan("fanout"), target, 1), 1)
generator = Generator(station, RequestStats(), lambda report, _now: reports.append(report))
users = [gevent.spawn(generator.drive, kind, 0) for kind in (BLOCK, PUBLISHER)]
gevent.sleep(0.3)
if sys.argv[1] == "fault":
    def fail():
        raise RuntimeError("a fault of ours")
    generator._reactor.call_later(0, fail)
    gevent.joinall(users, timeout=30)
generator.end()
gevent.joinall(users, timeout=30)
seats = [level["finished"] for level in reports[-1]["gauges"]]
print(json.dumps([[str(user.exception) for user in users], seats, [user.dead for user in users]]))
"""


@pytest.mark.parametrize(("how", "words"), [("end", "None"), ("fault", "a fault of ours")])
def test_seats_end_with_the_loop_and_a_fault_of_it_is_told(how, words):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, timeout=90, check=True
    )
    assert json.loads(done.stdout) == [[words] * 2, [1, 1], [True, True]]
