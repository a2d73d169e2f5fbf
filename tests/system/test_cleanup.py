# SPDX-License-Identifier: Apache-2.0
"""After ``down`` nothing of a swarm is left, whatever was killed before."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.lab import Lab
from support.leftovers import hugepages, namespaces_of, other_swarms, processes_of
from system.clients import Load, curl
from system.swarm_rig import INDEX, Swarm, eventually, kill, manager_of, swarm_prepared

from pipeline.host.processes import program

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

VICTIMS: dict[str, Callable[[Swarm], list[int]]] = {
    "holder": lambda swarm: [p for p, argv in processes_of(swarm.run_dir).items() if "pipeline.host.holder" in argv],
    "manager": lambda swarm: [swarm.manager_pid()],
    "router": lambda swarm: [swarm.status()["router"]["pid"]],
    "tcp": lambda swarm: [swarm.instances("tcp")[0]["pid"]],
    "tls": lambda swarm: [swarm.instances("tls")[0]["pid"]],
    "http": lambda swarm: [swarm.instances("http")[0]["pid"]],
    "app": lambda swarm: [swarm.instances("app")[0]["pid"]],
    "every instance": lambda swarm: [i["pid"] for i in swarm.instances()],
    "everything": lambda swarm: list(processes_of(swarm.run_dir)),
}

# In the place of swarmline-instance: some start once a file is there.
LATE = """#!/bin/sh
for word; do
    case $word in {these}) while [ ! -e {go} ]; do sleep 0.02; done;; esac
done
exec {program} "$@"
"""


@pytest.fixture
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    """Not started yet."""
    with swarm_prepared(module_lab) as made:
        yield made


def links(swarm: Swarm) -> list[dict[str, Any]]:
    shown = subprocess.run(["ip", "-j", "-n", swarm.lab.host, "addr"], capture_output=True, check=True)
    found: list[dict[str, Any]] = json.loads(shown.stdout)
    return found


def test_down_takes_back_all_that_up_made(swarm: Swarm) -> None:
    def facts() -> tuple[object, ...]:
        return links(swarm), namespaces_of(swarm.lab.prefix)

    alone, before, pages = not other_swarms(swarm.run_dir), facts(), hugepages()
    swarm.up()
    assert swarm.xdp() and swarm.left()
    assert curl(swarm.lab.client, "https://10.77.0.10/") == INDEX
    assert swarm.command("down").stdout == "down\n"
    assert swarm.left() == []
    assert facts() == before
    if alone and not other_swarms(swarm.run_dir):
        assert hugepages() == pages


def test_down_with_requests_in_flight(swarm: Swarm) -> None:
    swarm.up()
    with Load(swarm.lab) as load:
        load.goes_on()
        swarm.command("down")
        assert swarm.left() == []
        load.give_up()


@pytest.mark.parametrize("victim", VICTIMS)
def test_down_after_kill(swarm: Swarm, victim: str) -> None:
    swarm.up()
    for pid in VICTIMS[victim](swarm):
        kill(pid)
    swarm.command("down")
    assert swarm.left() == []


def test_down_twice(swarm: Swarm) -> None:
    swarm.up()
    swarm.command("down")
    done = swarm.command("down", ok=False)
    assert done.returncode == 9
    assert done.stderr == f"swarmline: no swarm runs in {swarm.run_dir}: start one with `swarmline up FILE`\n"


def test_up_again_after_everything_was_killed(swarm: Swarm) -> None:
    """What a power cut or an operator in anger leaves is in nobody's way."""
    swarm.up()
    for pid in VICTIMS["everything"](swarm):
        kill(pid)
    swarm.up()
    assert curl(swarm.lab.client, "https://10.77.0.10/") == INDEX


def test_up_again_while_a_part_of_it_lives(swarm: Swarm) -> None:
    """Somebody killed a holder and a manager; or both had started something again before their turn came."""
    swarm.up()
    for victim in ("holder", "manager"):
        for pid in VICTIMS[victim](swarm):
            kill(pid)
    left = set(processes_of(swarm.run_dir))
    assert left
    swarm.up()
    assert curl(swarm.lab.client, "https://10.77.0.10/") == INDEX
    assert not left & set(processes_of(swarm.run_dir))


def test_up_again_knows_nothing_of_the_former_services(swarm: Swarm, monkeypatch: pytest.MonkeyPatch) -> None:
    """tls comes late, so http is served before https: what the dead swarm had served is no service that went."""
    swarm.up()
    tls = [instance["vm_id"] for instance in swarm.instances("tls")]
    for pid in VICTIMS["everything"](swarm):
        kill(pid)
    go, late = swarm.folder / "go", swarm.folder / "bin" / "swarmline-instance"
    late.parent.mkdir()
    late.write_text(LATE.format(these="|".join(f"--vm-id={n}" for n in tls), go=go, program=program(late.name)))
    late.chmod(0o755)
    monkeypatch.setenv("SWARMLINE_BIN", str(late.parent))
    with subprocess.Popen(swarm.argv("up", str(swarm.config), "--detach"), stdout=subprocess.DEVNULL) as up:
        try:
            done = "set services http"
            eventually(lambda: manager_of(swarm) and done in swarm.events("set-services"), "http is served")
        finally:
            go.touch()
    assert up.returncode == 0
    assert curl(swarm.lab.client, "https://10.77.0.10/") == INDEX


def test_hugepages_of_a_dead_swarm_are_its_successor_s(swarm: Swarm) -> None:
    """`up` finds them in the pool and needs no more; the `down` that follows gives them back all the same."""
    swarm.up()
    added = pages_noted(swarm)
    for pid in VICTIMS["everything"](swarm):
        kill(pid)
    swarm.up()
    assert pages_noted(swarm) >= added


def test_hugepages_are_given_back_when_the_holder_ended_in_order(swarm: Swarm) -> None:
    swarm.up()
    added, before = pages_noted(swarm), hugepages()
    (holder,) = VICTIMS["holder"](swarm)
    os.kill(holder, signal.SIGTERM)
    eventually(lambda: holder not in VICTIMS["holder"](swarm), "the holder has ended")
    assert pages_noted(swarm) == added
    swarm.command("down")
    if not other_swarms(swarm.run_dir):
        assert hugepages()[0] == before[0] - added


def pages_noted(swarm: Swarm) -> int:
    notes = json.loads((swarm.run_dir / "state.json").read_text())
    return sum(notes["hugepages"].values())


# ---- in the foreground


@pytest.fixture
def foreground(swarm: Swarm) -> Iterator[subprocess.Popen[str]]:
    """`swarmline up` without --detach, as at a terminal: a test session in the background ignores SIGINT, and its
    children would too.
    """
    argv = swarm.argv("up", str(swarm.config))
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler)
    ) as up:
        yield up
        up.kill()


def until(up: subprocess.Popen[str], words: str) -> None:
    assert up.stdout
    for line in up.stdout:
        if words in line:
            return
    pytest.fail(f"up ended without saying {words!r}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_a_swarm_in_the_foreground(
    swarm: Swarm, foreground: subprocess.Popen[str], number: signal.Signals
) -> None:
    until(foreground, "running; Ctrl-C ends it")
    assert curl(swarm.lab.client, "https://10.77.0.10/") == INDEX
    foreground.send_signal(number)
    assert foreground.wait(timeout=20) == 0
    assert swarm.left() == []


@pytest.mark.parametrize("words", ["start the router", "start tcp instance"])
def test_signal_while_it_comes_up(swarm: Swarm, foreground: subprocess.Popen[str], words: str) -> None:
    until(foreground, words)
    foreground.send_signal(signal.SIGINT)
    assert foreground.wait(timeout=20) == 130
    assert swarm.left() == []


def test_foreground_ends_when_somebody_else_says_down(swarm: Swarm, foreground: subprocess.Popen[str]) -> None:
    until(foreground, "running; Ctrl-C ends it")
    swarm.command("down")
    assert foreground.wait(timeout=20) == 0
    assert swarm.left() == []


def test_swarm_outlives_a_killed_foreground(swarm: Swarm, foreground: subprocess.Popen[str]) -> None:
    until(foreground, "running; Ctrl-C ends it")
    foreground.kill()
    foreground.wait(timeout=20)
    assert curl(swarm.lab.client, "https://10.77.0.10/") == INDEX
    swarm.command("down")
    assert swarm.left() == []
