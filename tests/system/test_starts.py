# SPDX-License-Identifier: Apache-2.0
"""While instances are starting the swarm goes on: it is reloaded, scaled, drained, taken down, and its manager dies.

An instance's start is held up as long as there is a file: in the place of the program there is a script that waits.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.lab import Lab
from system.clients import Load, curl
from system.swarm_rig import INDEX, Swarm, eventually, kill, manager_of, swarm_made

from pipeline.cli.client import call
from pipeline.host import processes

pytestmark = [pytest.mark.root, pytest.mark.netns, pytest.mark.bpf, pytest.mark.timeout(60)]

SCRIPT = """#!/bin/sh
while [ -e {folder}/hold ]; do sleep 0.02; done
if [ -e {folder}/refuse ]; then echo "this one is refused" >&2; exit 3; fi
exec {program} "$@"
"""
FEW: dict[str, Any] = {"swarm": {"drain_timeout": "1s"}}
FEW |= {f"layer.{layer}": {"instances": 1} for layer in ("tcp", "tls", "http", "app")}


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("gate")
    program = folder / "swarmline-instance"
    program.write_text(SCRIPT.format(folder=folder, program=processes.program("swarmline-instance")))
    program.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(processes.BIN_VARIABLE, str(folder))
        yield folder


@pytest.fixture(scope="module")
def swarm(module_lab: Lab, gate: Path) -> Iterator[Swarm]:
    with swarm_made(module_lab, {**FEW, "layer.app": {"instances": 2}}) as made:
        yield made


@contextmanager
def there(file: Path) -> Iterator[None]:
    file.touch()
    try:
        yield
    finally:
        file.unlink()


def starting(swarm: Swarm, layer: str) -> int:
    """The VMID of the layer's instance that is held up, once there is one."""

    def found() -> int | None:
        pool = [i["vm_id"] for i in swarm.instances(layer, state="booting")]
        return next((vm_id for vm_id in pool if processes.of_instance(swarm.run_dir, vm_id)), None)

    return eventually(found, f"an instance of {layer} starts")


def test_services_change(swarm: Swarm, gate: Path) -> None:
    """An instance of the first layer that is starting has no port yet, and the router is told of others' alone. Routes
    that change meanwhile do not alter that.
    """
    vips = [swarm.lab.vip4, swarm.lab.vip6]
    more = [
        {"name": "https", "address": vips, "port": 443, "chain": ["tcp", "tls", "http", "app"]},
        {"name": "http", "address": vips, "port": 80, "chain": ["tcp", "http", "app"]},
        {"name": "more", "address": vips[:1], "port": 8080, "chain": ["tcp", "http", "app"]},
    ]
    swarm.configure({**FEW, "service": more})
    with Load(swarm.lab, connections=4) as load:
        with there(gate / "hold"):
            swarm.command("scale", "tcp=2")
            starting(swarm, "tcp")
            swarm.command("scale", "app=1")
            eventually(lambda: len(swarm.instances("app")) == 1, "one of layer app goes")
            swarm.command("reload")
            eventually(lambda: any("more" in text for text in swarm.events("set-services")), "the services are set")
            load.goes_on(20)
        swarm.eventually_active("tcp", 1)
        load.goes_on(20)
    assert not load.failures
    assert not swarm.events("failed")
    assert curl(swarm.lab.client, f"http://{swarm.lab.vip4}:8080/") == INDEX


def test_the_manager_dies(swarm: Swarm, gate: Path) -> None:
    """The next one ends what the former one did not live to start, and starts another in its place."""
    former = swarm.manager_pid()
    with Load(swarm.lab, connections=4) as load:
        with there(gate / "hold"):
            swarm.command("scale", "tcp=2")
            left = starting(swarm, "tcp")
            kill(former)
            eventually(lambda: manager_of(swarm) not in (None, former), "another manager")
            eventually(lambda: not processes.of_instance(swarm.run_dir, left), "what was starting is ended")
            load.goes_on(20)
        pool = swarm.eventually_active("tcp", 2)
        load.goes_on(20)
    assert not load.failures
    assert left not in [i["vm_id"] for i in pool]
    assert [text for text in swarm.events("instance-failed") if "did not live to start it" in text]
    assert not swarm.events("failed")


def test_one_does_not_start(swarm: Swarm, gate: Path) -> None:
    """It is said why, and tried again, ever later; nobody else notices."""
    with Load(swarm.lab, connections=4) as load:
        with there(gate / "refuse"):
            swarm.command("scale", "app=2")
            eventually(lambda: len(swarm.events("crash-loop")) == 3, "it keeps dying")
        swarm.eventually_active("app", 2)
        load.goes_on(20)
    assert not load.failures
    assert not swarm.events("failed")
    assert any("refused" in text for text in swarm.events("instance-failed"))
    events = call(swarm.run_dir, "GET", "/v1/events")["events"]
    loops = [n for n, event in enumerate(events) if event["kind"] == "crash-loop"]
    for n in loops:
        told = float(re.findall(r"started in ([0-9.]+) s", events[n]["text"])[0])
        following = next(event for event in events[n:] if event["text"].startswith("start app"))
        assert following["time"] - events[n]["time"] >= told


def test_nobody_wants_it_any_more(swarm: Swarm, gate: Path) -> None:
    """It is ended in the middle of its start: first by drain, which has another one started, then by scale."""
    failed = len(swarm.events("instance-failed"))
    with Load(swarm.lab, connections=4) as load, there(gate / "hold"):
        swarm.command("scale", "http=2")
        first = starting(swarm, "http")
        swarm.command("drain", str(first))
        eventually(lambda: first not in swarm.pids(), "it is gone")
        second = starting(swarm, "http")
        swarm.command("scale", "http=1")
        eventually(lambda: second not in swarm.pids(), "the other one is gone")
        load.goes_on(20)
    assert not load.failures
    assert not any(processes.of_instance(swarm.run_dir, vm_id) for vm_id in (first, second))
    assert len(swarm.events("instance-failed")) == failed
    assert not swarm.events("failed")


def test_down(swarm: Swarm, gate: Path) -> None:
    with there(gate / "hold"):
        swarm.command("scale", "app=3")
        starting(swarm, "app")
        swarm.command("down")
    assert swarm.left() == []
