# SPDX-License-Identifier: Apache-2.0
"""A layer follows its measured load, up and down to its least, and says why. How it decides, and that it does not flap,
is in tests/unit/test_scaling.py.
"""

import signal
import subprocess
from collections.abc import Iterator

import pytest
from support.lab import Lab, in_netns
from system.swarm_rig import Swarm, eventually, swarm_made

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

EAGER = {"autoscale": True, "target_load": 0.1, "cooldown": "1s", "instances": 1, "min": 1, "max": 2}


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_made(module_lab, {"layer.http": EAGER}) as made:
        yield made


def test_pool_follows_the_load(swarm: Swarm) -> None:
    argv = in_netns(swarm.lab.client, "wrk", "-t1", "-c8", "-d60", f"http://{swarm.lab.vip4}/")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as wrk:
        eventually(lambda: len(swarm.instances("http")) == 2, "a second http instance", 30)
        shown = top(swarm)
        wrk.send_signal(signal.SIGINT)
        assert wrk.stdout
        said = wrk.stdout.read()
    assert "Requests/sec" in said and "Socket errors" not in said and "Non-2xx" not in said, said
    swarm.eventually_active("http", 1, timeout=40)      # samples count for ten seconds
    up, *_, down = swarm.events("autoscale")
    assert "http: load " in up and up.endswith("from 1 to 2")
    assert "http: load " in down and down.endswith("from 2 to 1")
    assert "requests/s" in shown and "p99" in shown
    assert {line.split()[1] for line in shown.splitlines() if " active " in line} == {"tcp", "tls", "http", "app"}


def top(swarm: Swarm) -> str:
    """Its first table."""
    with subprocess.Popen(swarm.argv("top", "--every", "0.5"), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = [process.stdout.readline()]
        while "app" not in lines[-1]:
            assert lines[-1], "it ended"
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode in (0, 130)
    return "".join(lines)
