# SPDX-License-Identifier: Apache-2.0
"""Instances that get another layer while they run, and warm ones that wait for their first."""

import asyncio
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from support.lab import Lab
from system.clients import Load, curl
from system.swarm_rig import (
    OWN_CERTIFICATE,
    OWN_CERTIFICATE_FILE,
    OWN_KEY_FILE,
    OWN_NAME,
    Swarm,
    certificate_made,
    eventually,
    kill,
    manager_of,
    swarm_prepared,
)
from system.walls import EDGES, holds_key, memfds_mapped, memory

from pipeline.host import holder_client, processes
from pipeline.host.assignment import Assignment, EdgeSeat, ServiceSeat
from pipeline.host.certs import KeyPair, TicketKey
from pipeline.host.control import ControlRegion
from pipeline.host.doorbells import ring
from pipeline.host.edges import EdgeMemory, Sizes
from pipeline.host.holder_client import HolderClient
from pipeline.host.tap import TapSpec
from pipeline.instances.conf import Secrets, conf_items
from pipeline.instances.driver import EdgeGrant, InstanceSpec, Outfit, Running
from pipeline.instances.process import ProcessDriver
from pipeline.policy.config import parse_config
from pipeline.policy.model import Edge, LayerId, VmState

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

LAYERS = ("tcp", "tls", "http", "app")
SMALL = tuple(Edge(LayerId[front], LayerId[back], 1, 1)
              for front, back in (("TCP", "TLS"), ("TCP", "HTTP"), ("TLS", "HTTP"), ("HTTP", "APP")))


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_prepared(module_lab, {
        "swarm": {"drain_timeout": "3s"},
        "pool": {"processes": 1},
        "layer.tcp": {"instances": 2},
        "layer.tls": OWN_CERTIFICATE,
    }) as made:
        certificate_made(made.folder, OWN_NAME)
        made.up()
        yield made


@pytest.fixture(autouse=True)
def as_it_was(swarm: Swarm) -> Iterator[None]:
    """Two active instances of each layer and a full pool, before each test and after it."""
    settled(swarm)
    yield
    swarm.command("scale", *(f"{layer}=2" for layer in LAYERS))
    settled(swarm)


def warm(swarm: Swarm) -> list[dict[str, Any]]:
    return [i for i in swarm.instances(state="ready") if not i["layers"]]


def settled(swarm: Swarm) -> None:
    for layer in LAYERS:
        swarm.eventually_active(layer, 2)
    eventually(lambda: len(warm(swarm)) == 1, "a warm instance")


def changed(swarm: Swarm, vm_id: int, layer: str) -> dict[str, Any]:
    """Gives an instance another layer and waits until it serves that."""
    swarm.command("assign", str(vm_id), layer)
    return eventually(
        lambda: next((i for i in swarm.instances(layer) if i["vm_id"] == vm_id), None), f"{vm_id} is {layer}"
    )


# a walk that has each layer as the former and as the next one; it ends where it began
WALK = ("tls", "http", "app", "tcp", "app", "http", "tls")


def test_layer_changed_under_load(swarm: Swarm) -> None:
    """It is one of three everywhere, and takes its place in the numbers along."""
    swarm.command("scale", f"{WALK[0]}=3")
    walker = swarm.eventually_active(WALK[0], 3)[0]["vm_id"]
    before = swarm.pids()
    with Load(swarm.lab) as load:
        for old, new in pairwise(WALK):
            now = changed(swarm, walker, new)
            assert now["pid"] == before[walker], "it is the same process"
            assert memfds_mapped(now["pid"]) == {f"sl-edge-{e}" for e in EDGES[new]} | {f"sl-control-{walker}"}
            swarm.eventually_active(old, 2)
            swarm.eventually_active(new, 3)
            load.goes_on(100)
            eventually(lambda: served(swarm, walker), f"instance {walker} serves {new}")
    assert not load.failures


def served(swarm: Swarm, vm_id: int) -> bool:
    """Whether it did anything for its present layer. New connections, of which it gets its share."""
    for scheme in ("https", "http"):
        curl(swarm.lab.client, f"{scheme}://10.77.0.10/")
    return any(i["requests"] for i in swarm.instances() if i["vm_id"] == vm_id)


def test_warm_instance_is_taken_and_replaced(swarm: Swarm) -> None:
    (ready,) = warm(swarm)
    swarm.command("scale", "app=3")
    assert ready["vm_id"] in {i["vm_id"] for i in swarm.eventually_active("app", 3)}
    (next_one,) = eventually(lambda: warm(swarm), "the pool is filled again")
    assert next_one["vm_id"] != ready["vm_id"]


def test_warm_instance_holds_nothing(swarm: Swarm) -> None:
    (ready,) = warm(swarm)
    assert memfds_mapped(ready["pid"]) == {f"sl-control-{ready['vm_id']}"}
    assert ready["layers"] == []


def test_dead_warm_instance_is_replaced(swarm: Swarm) -> None:
    (ready,) = warm(swarm)
    kill(ready["pid"])
    eventually(lambda: [i for i in warm(swarm) if i["vm_id"] != ready["vm_id"]], "another warm instance")
    assert any(f"warm instance {ready['vm_id']} " in text for text in swarm.events("instance-failed"))


def test_next_manager_knows_warm_and_changed_instances(swarm: Swarm) -> None:
    first, before = swarm.manager_pid(), swarm.pids()
    (ready,) = warm(swarm)
    kill(first)
    eventually(lambda: manager_of(swarm) not in (None, first), "another manager")
    assert swarm.pids() == before
    changed(swarm, ready["vm_id"], "http")


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        (("999", "http"), 4, "there is no instance 999"),
        (("{app}", "app"), 4, "has this layer already"),
        (("{app}", "quic"), 4, "layers are: tcp, tls, http, app"),
        (("{app}", "none"), 7, "layers are: tcp, tls, http, app"),
    ],
)
def test_change_that_can_not_be(swarm: Swarm, words: tuple[str, str], status: int, says: str) -> None:
    vm_id, layer = words
    app = str(swarm.instances("app")[0]["vm_id"])
    done = swarm.command("assign", vm_id.format(app=app), layer, ok=False)
    assert done.returncode == status
    assert says in done.stderr and done.stderr.count("\n") == 1


def test_last_active_instance_changes_only_by_force(swarm: Swarm) -> None:
    swarm.command("scale", "app=1")
    (last,) = swarm.eventually_active("app", 1)
    refused = swarm.command("assign", str(last["vm_id"]), "http", ok=False)
    assert refused.returncode == 4
    assert "layer app would have 0 active instances" in refused.stderr and "--force" in refused.stderr
    swarm.command("assign", str(last["vm_id"]), "http", "--force")
    swarm.eventually_active("http", 3)
    (other,) = swarm.eventually_active("app", 1)
    assert other["vm_id"] != last["vm_id"]


# ---- nothing is left of the former layer

COOKIE = b"of-one-client-and-nobody-else"


def holdings(pid: int) -> tuple[int, Counter[str]]:
    """Descriptors, and mappings by what is mapped."""
    names = re.findall(r"^\S+ \S+ \S+ \S+ \d+ *(.*)$", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE)
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), Counter(names)


def rss(pid: int) -> int:
    """kB that are its own."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1])  # type: ignore[index]


def test_many_changes_leave_nothing(swarm: Swarm, run_dir: Path) -> None:
    """Fifty, after one round in which libraries get what they keep. An instance alone: nothing has to drain."""
    config = parse_config(swarm.config.read_text(), str(swarm.config))
    key = [KeyPair((swarm.folder / OWN_CERTIFICATE_FILE).read_bytes(), (swarm.folder / OWN_KEY_FILE).read_bytes())]
    secrets = Secrets(key, [TicketKey.fresh()])
    pid = holder_client.start(run_dir)
    with HolderClient(run_dir) as holder, ExitStack() as stack:
        edges = {edge: EdgeMemory.create(holder, edge, Sizes(ring_cap=64, nb_small=16, nb_big=4)) for edge in SMALL}
        for memory in edges.values():
            stack.callback(memory.close)
        fds = holder.instance_add(3)
        stack.callback(fds.close)
        control = ControlRegion(fds.control, 3)
        stack.callback(control.close)
        control.format()

        async def become(driver: ProcessDriver, running: Running, layer: LayerId, number: int) -> None:
            mine = [(edge, m) for edge, m in edges.items() if edge.side((layer,)) is not None]
            seats = tuple(EdgeSeat(m.edge_id, number, 0, side, edge.back if edge.front is layer else edge.front)
                          for edge, m in mine if (side := edge.side((layer,))) is not None)
            services = [ServiceSeat(x.name, x.addresses, x.port, 6, 0) for x in config.services]
            wanted = Assignment(layer, seats, tuple(services), bytes.fromhex("027700000001"), 1500)
            outfit = Outfit(
                control.assign(wanted, conf_items(config, layer, secrets if layer is LayerId.TLS else Secrets())),
                wanted, tuple(EdgeGrant(m.edge_id, m.fd) for _, m in mine),
                TapSpec(wanted.nic_mac, 1500) if layer is LayerId.TCP else None, 16,
                swarm.site if layer is LayerId.APP else None)
            await driver.plug(running, outfit)
            ring(fds.doorbell)
            await asyncio.to_thread(eventually, lambda: ready(control, layer), f"ready as {layer.label}")
            if (tap := running.take_tap()) is not None:
                os.close(tap)

        async def run() -> None:
            driver = ProcessDriver()
            running = await driver.start(InstanceSpec(3, run_dir, fds.facts.socket))
            seen = []
            for number in range(14):
                for layer in (LayerId.TLS, LayerId.APP, LayerId.TCP, LayerId.HTTP):
                    await become(driver, running, layer, number + 1)
                seen.append((*holdings(running.pid), rss(running.pid)))
            await driver.stop(running)
            first, last = seen[0], seen[-1]
            assert last[:2] == first[:2], seen
            assert last[2] <= first[2] + 256, f"kB after each round: {[kilobytes for _, _, kilobytes in seen]}"

        asyncio.run(run())
    processes.kill_all(run_dir)
    os.waitpid(pid, 0)
    processes.clean_up(run_dir)
    run_dir.mkdir(exist_ok=True)


def ready(control: ControlRegion, layer: LayerId) -> bool:
    report = control.report()
    return report is not None and (report.status.state, report.status.protocol_layers) == (VmState.READY, (layer,))


def test_secrets_of_the_former_layer_are_gone(swarm: Swarm) -> None:
    """The private key, and what a client said."""
    swarm.command("scale", "tls=3", "http=3")
    leavers = [swarm.eventually_active(layer, 3)[0] for layer in ("tls", "http")]

    def told() -> bool:
        """Each connection goes to one of them."""
        words = ("-H", f"Cookie: {COOKIE.decode()}", "--data", COOKIE.decode())
        curl(swarm.lab.client, "https://10.77.0.10/echo", *words)
        return holds(leavers[1]["pid"], COOKIE)

    eventually(told, "it has heard the client", timeout=30)
    assert [holds_key(i["pid"], swarm) for i in leavers] == [True, False]
    for instance in leavers:
        changed(swarm, instance["vm_id"], "app")
    for instance in leavers:
        assert not holds_key(instance["pid"], swarm)
        assert not holds(instance["pid"], COOKIE), f"the {instance['layers']} that was"


def holds(pid: int, secret: bytes) -> bool:
    """In memory of its own; edges are shared with the peers that wrote them."""
    return any(secret in data for data in memory(pid, but="sl-edge-"))
