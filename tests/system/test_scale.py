# SPDX-License-Identifier: Apache-2.0
"""Change and death under load: not one request fails that a client could blame on us."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from select import select
from typing import Any

import pytest
from support.lab import Lab
from system.clients import Load, dial
from system.swarm_rig import INDEX, Swarm, eventually, kill, manager_of, swarm_made

from pipeline.cli.client import call

pytestmark = [pytest.mark.netns, pytest.mark.bpf]


UNMANAGED = float(os.environ.get("SWARMLINE_UNMANAGED", "1"))  # seconds; tests/verify says 60
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def ask(sock: socket.socket) -> None:
    """A request and its right answer."""
    sock.sendall(GET)
    data = b""
    while not data.endswith(INDEX):
        piece = sock.recv(65536)
        assert piece, f"the connection ended after {data!r}"
        data += piece


def answered(socks: list[socket.socket]) -> dict[socket.socket, bool]:
    """Waits for what the server says on each: True, a right answer; False, the end of the connection."""
    result: dict[socket.socket, bool] = {}
    while waiting := [sock for sock in socks if sock not in result]:
        found = select(waiting, [], [], 5)[0]
        assert found, f"{len(waiting)} of {len(socks)} connections hang"
        for sock in found:
            try:
                result[sock] = sock.recv(65536).startswith(b"HTTP/1.1 200 ")
            except ConnectionResetError:
                result[sock] = False
    return result


@pytest.fixture(scope="module")
def module_swarm(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_made(module_lab, {"swarm": {"drain_timeout": "3s"}, "layer.tcp": {"instances": 2}}) as made:
        yield made


@pytest.fixture
def swarm(module_swarm: Swarm) -> Iterator[Swarm]:
    """As it was at the start: two active instances of each layer, before the test and after it."""

    def whole() -> None:
        for layer in ("tcp", "tls", "http", "app"):
            module_swarm.eventually_active(layer, 2, timeout=10)

    whole()
    yield module_swarm
    for layer in module_swarm.status()["layers"]:
        if layer["instances"] != 2:
            call(module_swarm.run_dir, "POST", "/v1/scale", {"layer": layer["layer"], "instances": 2})
    whole()


@pytest.mark.parametrize("layer", ["app", "http", "tls", "tcp"])
def test_scale_up_and_down_under_load(swarm: Swarm, layer: str) -> None:
    with Load(swarm.lab) as load:
        swarm.command("scale", f"{layer}=4")
        swarm.eventually_active(layer, 4)
        load.goes_on()
        swarm.command("scale", f"{layer}=1")
        swarm.eventually_active(layer, 1, timeout=10)
        load.goes_on()
    assert not load.failures


@pytest.mark.parametrize("layer", ["app", "http", "tls", "tcp"])
def test_drain_under_load(swarm: Swarm, layer: str) -> None:
    """The instance goes once its flows have ended, and another takes its place."""
    leaver = swarm.instances(layer)[0]["vm_id"]
    with Load(swarm.lab) as load:
        swarm.command("drain", str(leaver))
        eventually(lambda: leaver not in swarm.pids(), f"instance {leaver} is gone", timeout=10)
        swarm.eventually_active(layer, 2)
        load.goes_on()
    assert not load.failures


def test_last_active_instance_drains_only_by_force(swarm: Swarm) -> None:
    swarm.command("scale", "app=1")
    (last,) = swarm.eventually_active("app", 1)
    refused = swarm.command("drain", str(last["vm_id"]), ok=False)
    assert refused.returncode == 4
    assert "layer app would have 0 active instances" in refused.stderr and "--force" in refused.stderr
    assert swarm.instances("app") == [{**swarm.instances("app")[0], "vm_id": last["vm_id"], "pid": last["pid"]}]
    swarm.command("drain", str(last["vm_id"]), "--force")
    (other,) = eventually(lambda: [i for i in swarm.instances("app") if i["vm_id"] != last["vm_id"]],
                          "a replacement")
    with Load(swarm.lab) as load:
        load.goes_on()
    assert not load.failures
    assert other["pid"] != last["pid"]


@pytest.mark.parametrize(
    ("word", "status", "says"),
    [
        ("app=99", 4, "the config file allows 1 to 8"),
        ("app=0", 4, "the config file allows 1 to 8"),
        ("quic=2", 4, "layers are"),
        ("app", 7, "LAYER=N"),
        ("app=x", 7, "LAYER=N"),
    ],
)
def test_scale_that_can_not_be(swarm: Swarm, word: str, status: int, says: str) -> None:
    done = swarm.command("scale", word, ok=False)
    assert done.returncode == status
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_drain_of_nobody(swarm: Swarm) -> None:
    done = swarm.command("drain", "999", ok=False)
    assert done.returncode == 4
    assert "there is no instance 999" in done.stderr


# ---- death


def killed(swarm: Swarm, layer: str) -> dict[str, Any]:
    """Kills an instance of the layer, as it was just before. Returns when it is dead."""
    swarm.published()
    victim = max(swarm.instances(layer), key=lambda i: i["active_flows"])
    kill(victim["pid"])
    return victim


def replaced(swarm: Swarm, layer: str, victim: dict[str, Any]) -> None:
    eventually(
        lambda: len([i for i in swarm.instances(layer) if i["vm_id"] != victim["vm_id"]]) == 2,
        f"{layer} instance {victim['vm_id']} is replaced",
        timeout=5,
    )
    assert any(f"{layer} instance {victim['vm_id']} " in text for text in swarm.events("instance-failed"))


def test_app_killed_while_asked_what_may_be_repeated(swarm: Swarm) -> None:
    """GET is safe to repeat (RFC 9110 section 9.2.2): another instance answers, and no client notices."""
    with Load(swarm.lab, method="GET") as load:
        victim = killed(swarm, "app")
        load.goes_on()
        replaced(swarm, "app", victim)
        load.goes_on()
    assert not load.failures


def test_app_killed_while_asked_what_may_not_be_repeated(swarm: Swarm) -> None:
    """A POST in progress gets an honest 502, once at most for each client."""
    with Load(swarm.lab) as load:
        victim = killed(swarm, "app")
        load.goes_on()
        replaced(swarm, "app", victim)
        load.goes_on()
    assert all("status 502" in reason for _, reason in load.failures), load.failures
    assert len({client for client, _ in load.failures}) == len(load.failures)


def test_http_killed_under_load(swarm: Swarm) -> None:
    """Its own connections are reset at once and can be made anew at once; the others do not notice."""
    with Load(swarm.lab, connections=12) as load:
        victim = killed(swarm, "http")
        load.goes_on()
        replaced(swarm, "http", victim)
        load.goes_on()
    clients = [client for client, _ in load.failures]
    assert 0 < len(clients) <= victim["active_flows"], load.failures
    assert len(set(clients)) == len(clients), load.failures


def test_tcp_killed(swarm: Swarm) -> None:
    """Its connections end at once, those of the other go on, and new ones are served."""
    with ExitStack() as stack:
        socks = [stack.enter_context(dial(swarm.lab)) for _ in range(16)]
        for sock in socks:
            ask(sock)
        swarm.published()
        flows = {i["vm_id"]: i["active_flows"] for i in swarm.instances("tcp")}
        assert sum(flows.values()) == 16 and all(flows.values()), "both instances hold connections"
        victim = killed(swarm, "tcp")
        for sock in socks:
            with suppress(OSError):
                sock.sendall(GET)
        alive = [sock for sock, right in answered(socks).items() if right]
        assert len(alive) == 16 - victim["active_flows"]
        replaced(swarm, "tcp", victim)
        for sock in alive:
            ask(sock)
    with Load(swarm.lab) as load:
        load.goes_on()
    assert not load.failures


def test_router_killed_under_load(swarm: Swarm) -> None:
    """Frames are lost, which TCP repeats; no connection is."""
    with Load(swarm.lab) as load:
        first = swarm.status()["router"]["pid"]
        kill(first)
        eventually(lambda: swarm.status().get("router", {}).get("pid", first) != first, "another router")
        load.goes_on(timeout=20)
    assert not load.failures
    assert load.reopened <= load.connections, "each connection was closed by its client, at the end"


def test_manager_killed_under_load(swarm: Swarm) -> None:
    """Nobody needs it for a request. The next one takes the same instances over, and can change them."""
    pids, first = swarm.pids(), swarm.manager_pid()
    with Load(swarm.lab) as load:
        kill(first)
        load.goes_on()
        eventually(lambda: manager_of(swarm) not in (None, first), "another manager", timeout=30)
        assert swarm.pids() == pids
        swarm.command("scale", "app=3")
        swarm.eventually_active("app", 3)
        load.goes_on()
        swarm.command("scale", "app=2")
        swarm.eventually_active("app", 2)
    assert not load.failures
    assert len(set(swarm.pids().values()) & set(pids.values())) >= 7


def test_nobody_manages_for_a_while(swarm: Swarm) -> None:
    """Nothing fails meanwhile; the next manager changes nothing."""
    first, pids = swarm.manager_pid(), swarm.pids()
    with Load(swarm.lab) as load:
        os.kill(first, signal.SIGSTOP)  # killed at once it would be replaced at once
        since = time.monotonic()
        while time.monotonic() < since + UNMANAGED:
            load.goes_on()
        kill(first)
        eventually(lambda: manager_of(swarm) not in (None, first), "another manager", timeout=30)
        load.goes_on()
        swarm.published()  # so it has had its turns
        assert swarm.pids() == pids
    assert not load.failures
    done = {event["kind"] for event in call(swarm.run_dir, "GET", "/v1/events")["events"]}
    assert "adopted" in done and not done & {"start-instance", "drain-instance", "stop-instance"}, done


def test_instance_killed_while_there_is_no_manager(swarm: Swarm) -> None:
    """The next manager finds it missing and replaces it."""
    first, victim = swarm.manager_pid(), swarm.instances("app")[0]
    os.kill(first, signal.SIGSTOP)
    kill(victim["pid"])
    kill(first)
    eventually(lambda: manager_of(swarm) not in (None, first), "another manager", timeout=30)
    eventually(lambda: victim["pid"] not in swarm.pids().values(), "the one that is missing is known")
    swarm.eventually_active("app", 2)
    with Load(swarm.lab) as load:
        load.goes_on()
    assert not load.failures
