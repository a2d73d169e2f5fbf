# SPDX-License-Identifier: Apache-2.0
"""Another configuration under load: checked first, applied by the same plan, taken back if it does not work."""

import os
import signal
from collections.abc import Iterator
from functools import partial

import pytest
from support.lab import Lab
from system.clients import Load
from system.swarm_rig import Swarm, eventually, swarm_made

pytestmark = [pytest.mark.netns, pytest.mark.bpf]


@pytest.fixture
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_made(module_lab) as made:
        yield made


def hang_up(swarm: Swarm) -> None:
    os.kill(swarm.manager_pid(), signal.SIGHUP)


def replaced(swarm: Swarm, layer: str, before: dict[int, int]) -> bool:
    """All of the layer are others now, and those of the other layers are the same."""
    now = {i["vm_id"] for i in swarm.instances(layer, state="")}
    others = {vm_id: pid for vm_id, pid in swarm.pids().items() if vm_id not in now}
    active = all(i["state"] == "active" for i in swarm.instances(layer, state=""))
    return len(now) == 2 and active and not now & before.keys() and others.items() <= before.items()


def test_hangup_applies_the_file(swarm: Swarm) -> None:
    before = swarm.pids()
    with Load(swarm.lab) as load:
        swarm.configure({"layer.http": {"keepalive_timeout": "61s"}})
        hang_up(swarm)
        eventually(partial(replaced, swarm, "http", before), "other http instances, and no others", timeout=30)
        load.goes_on()
    assert not load.failures


def test_dry_run_and_wrong_files_change_nothing(swarm: Swarm) -> None:
    before = swarm.pids()
    swarm.configure({"layer.http": {"keepalive_timeout": "61s"}})
    shown = swarm.command("reload", "--dry-run").stdout.splitlines()
    assert sum(line.startswith("start http instance") for line in shown) == 2
    swarm.configure({"layer.http": {"keepalive_timeout": "never"}})
    done = swarm.command("reload", ok=False)
    assert done.returncode and "layer.http.keepalive_timeout" in done.stderr
    hang_up(swarm)
    eventually(lambda: swarm.events("reload-failed"), "the refusal of what the hangup read")
    assert swarm.pids() == before
    assert not swarm.events("reload") and not swarm.events("start-instance")[len(before):]


def test_settings_that_do_not_work_are_taken_back(swarm: Swarm) -> None:
    """The file is right, but what it names is not there: the first instance that tries fails, and no request does."""
    before = swarm.pids()
    with Load(swarm.lab) as load:
        swarm.configure({"layer.app": {"root": "nowhere"}})
        hang_up(swarm)
        eventually(lambda: swarm.events("rolled-back"), "the former settings", timeout=30)
        swarm.eventually_active("app", 2, timeout=30)
        assert swarm.pids() == before
        load.goes_on()
    assert not load.failures
