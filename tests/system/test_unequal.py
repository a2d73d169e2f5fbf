# SPDX-License-Identifier: Apache-2.0
"""One of two app instances runs a quarter of the time: the other does what it can not.

How long clients wait when a control group slows it, compared with other ways to pick, is measured by
``make bench ONLY=route.unequal``; here it is stopped and continued, which does not depend on how fast a machine is.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from support.cgroups import cpu_group, no_cpu_groups
from support.lab import in_netns
from system.swarm_rig import Swarm, eventually

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

SLOWER = 4
RUNS = 0.02  # seconds in one piece; far below the silence of a dead instance
SHARE_MAX = 0.35  # of the requests: by its time it could do 0.2, without regard to it the half


def requests(swarm: Swarm) -> dict[int, int]:
    """That each app instance has begun."""
    swarm.published()
    return {i["vm_id"]: i["requests"] for i in swarm.instances("app")}


def shares(swarm: Swarm) -> dict[int, float]:
    """What part each gets of all that a client can ask for."""
    before = requests(swarm)
    argv = in_netns(swarm.lab.client, "wrk", "-t1", "-c32", "-d2", f"http://{swarm.lab.vip4}/")
    shown = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=30).stdout
    assert "Socket errors" not in shown and "Non-2xx" not in shown, shown
    done = {vm_id: number - before[vm_id] for vm_id, number in requests(swarm).items()}
    return {vm_id: number / sum(done.values()) for vm_id, number in done.items()}


@contextmanager
def slowed(pid: int) -> Iterator[None]:
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(RUNS * (SLOWER - 1))
            os.kill(pid, signal.SIGCONT)
            time.sleep(RUNS)

    thread = threading.Thread(target=work, name="slows")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def test_load_follows_power(swarm: Swarm) -> None:
    slow = swarm.instances("app")[0]
    equal = shares(swarm)
    assert 0.35 < equal[slow["vm_id"]] < 0.65
    with slowed(slow["pid"]):
        unequal = shares(swarm)
    assert unequal[slow["vm_id"]] < SHARE_MAX, f"{unequal} after {equal}"


def weights(swarm: Swarm) -> dict[int, int]:
    return {route["vm_id"]: route["weight"] for route in swarm.status()["routing_table"]["layers"]["app"]}


@pytest.mark.skipif(bool(no_cpu_groups()), reason=no_cpu_groups())
def test_weights_follow_the_limit_of_a_control_group(swarm: Swarm) -> None:
    """Before anybody has met the limit: whoever stands for the rest of a period has clients wait that long."""
    fast, slow = swarm.instances("app")
    with (
        cpu_group(f"{swarm.lab.prefix}-fast", fast["pid"], 0.04, 0.1),
        cpu_group(f"{swarm.lab.prefix}-slow", slow["pid"], 0.04 / SLOWER, 0.1),
    ):

        def in_proportion() -> bool:
            now = weights(swarm)
            return now[fast["vm_id"]] == SLOWER * now[slow["vm_id"]]

        eventually(in_proportion, "weights of app in proportion to its CPU time")
    eventually(lambda: len(set(weights(swarm).values())) == 1, "equal weights again")
