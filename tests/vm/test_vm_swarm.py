# SPDX-License-Identifier: Apache-2.0
"""Swarms of virtual machines: whole chains, chains mixed with processes, death, and guests that misbehave."""

import json
import os
import re
import signal
import socket
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.lab import Lab
from system.clients import Load, curl
from system.swarm_rig import (
    INDEX,
    Swarm,
    eventually,
    kill,
    manager_of,
    stall_is_found,
    swarm_made,
    swarm_prepared,
)
from vm.fakes import fake, switch

from pipeline.cli.client import call
from pipeline.host import cgroups, processes
from pipeline.host.images import Image

# each boot is seconds of a processor, and they may all have to wait for others
pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.qemu, pytest.mark.timeout(240)]

HOST, INSTANCE = 5, 6          # exit statuses, as in pipeline.errors
PATIENCE = 60.0                # seconds for a boot while several machines share two processors
EDGES = {"tcp": {"tcp-tls", "tcp-http"}, "tls": {"tcp-tls", "tls-http"}, "http": {"tcp-http", "tls-http", "http-app"},
         "app": {"http-app"}}


MIXED: dict[str, Any] = {"layer.tls": {"driver": "qemu", "instances": 1}, "layer.http": {"instances": 1},
                         "layer.app": {"driver": "qemu", "instances": 2}}


# ---- every layer in virtual machines


@pytest.fixture(scope="module")
def whole(module_lab: Lab, images: Path) -> Iterator[Swarm]:
    few: dict[str, Any] = {f"layer.{layer}": {"instances": 1} for layer in ("tcp", "tls", "http")}
    machines = {"driver": "qemu", "drain_timeout": "3s"}
    with swarm_made(module_lab, {"swarm": machines, "pool": {"vms": 1}, **few}) as made:
        yield made


def warm(swarm: Swarm) -> list[dict[str, Any]]:
    return [i for i in swarm.instances(state="ready") if not i["layers"]]


def serves(swarm: Swarm, vm_id: int, layer: str) -> bool:
    curl(swarm.lab.client, f"https://{swarm.lab.vip4}/")
    return any(i["vm_id"] == vm_id and i["requests"] for i in swarm.instances(layer))


def edges_mapped(pid: int) -> set[str]:
    return set(re.findall(r"memfd:sl-edge-(\S+)", Path(f"/proc/{pid}/maps").read_text()))


def test_every_layer_in_a_machine_of_its_own(whole: Swarm) -> None:
    assert {i["driver"] for i in whole.instances()} == {"qemu"}
    assert {i["accelerator"] for i in whole.instances()} <= {"kvm", "tcg"}
    body = whole.folder / "body"
    body.write_bytes(b"swarm" * 50_000)
    for address in (whole.lab.vip4, f"[{whole.lab.vip6}]"):
        for scheme in ("https", "http"):
            assert curl(whole.lab.client, f"{scheme}://{address}/") == INDEX
    echoed = curl(whole.lab.client, f"https://{whole.lab.vip4}/echo", "-H", "Expect:", "--data-binary", f"@{body}")
    assert echoed == body.read_bytes()
    assert whole.events("driver"), "it is said which accelerator there is"
    whole.published()
    assert {layer: whole.total(layer) > 0 for layer in EDGES} == dict.fromkeys(EDGES, True)


def test_qemu_has_no_rights_and_its_own_edges(whole: Swarm) -> None:
    for instance in whole.instances():
        proc = Path(f"/proc/{instance['pid']}")
        facts = dict(line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line)
        assert set(facts["Uid"].split()) == {str(700_000 + instance["vm_id"])}
        assert int(facts["CapEff"], 16) == 0
        assert (facts["NoNewPrivs"], facts["Seccomp"]) == ("1", "2")
        assert f"/vm-{instance['vm_id']}\n" in (proc / "cgroup").read_text()
        assert (proc / "ns/net").readlink() != Path("/proc/self/ns/net").readlink()
        assert edges_mapped(instance["pid"]) == EDGES[instance["layers"][0]]


def mapped_by_router(swarm: Swarm) -> set[str]:
    maps = Path(f"/proc/{swarm.status()['router']['pid']}/maps").read_text()
    return set(re.findall(r"memfd:(sl-(?:guest|edge|control)\S+)", maps))


def test_the_router_maps_the_guests_memory_and_no_edge(whole: Swarm) -> None:
    """QEMU offers it all that is plugged into the machine. Of a warm one, which may come to hold keys, nothing."""
    eventually(lambda: warm(whole), "a warm machine", PATIENCE)
    (tcp,) = whole.instances("tcp")
    assert mapped_by_router(whole) == {f"sl-guest-{tcp['vm_id']}"}


def sockets(pid: int, state: str) -> int:
    """How many are named `net` in the network namespace of that process: a connected one is where the client is."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()]
    return sum(words[5] == state and words[7:] == ["net"] for words in lines)


def test_a_warm_machines_interface_reaches_nobody(whole: Swarm) -> None:
    """It is there before it is needed. The router is connected while the machine is a first layer's, and only then."""
    listens, connected = "01", "03"
    (spare,) = eventually(lambda: warm(whole), "a warm machine", PATIENCE)
    vm_id, pid = spare["vm_id"], spare["pid"]
    with Load(whole.lab, connections=2, method="GET") as load:
        for layer, interfaces, links in ((None, 1, 1), ("app", 1, 1), ("tcp", 1, 2), ("app", 0, 1)):
            if layer:
                whole.command("assign", str(vm_id), layer)
                eventually(partial(serves, whole, vm_id, layer), f"{vm_id} serves {layer}", PATIENCE)
            assert sockets(pid, listens) == interfaces
            assert sockets(whole.status()["router"]["pid"], connected) == links
            assert (f"sl-guest-{vm_id}" in mapped_by_router(whole)) == (layer == "tcp")
            folder = whole.run_dir / "vhost" / str(vm_id)
            assert stat.S_IMODE(folder.stat().st_mode) == (0o710 if layer == "tcp" else 0o700)
            load.goes_on(10)
    assert not load.failures
    assert whole.pids()[vm_id] == pid
    whole.command("scale", "app=2")
    eventually(lambda: len(whole.instances("app")) == 2, "as many as before", PATIENCE)


def test_a_later_manager_takes_the_machines_over(whole: Swarm) -> None:
    (spare,) = eventually(lambda: warm(whole), "a warm machine", PATIENCE)
    before = whole.pids()
    former = whole.manager_pid()
    kill(former)
    eventually(lambda: manager_of(whole) not in (None, former), "another manager")
    assert whole.pids() == before
    assert curl(whole.lab.client, f"https://{whole.lab.vip4}/") == INDEX
    # it can speak to them: one drains and goes, the warm one takes its place
    leaver = whole.instances("app")[0]["vm_id"]
    with Load(whole.lab, connections=2, method="GET") as load:
        whole.command("drain", str(leaver))
        eventually(lambda: leaver not in whole.pids(), f"instance {leaver} is gone", PATIENCE)
        pool = {i["vm_id"]: i["pid"] for i in whole.eventually_active("app", 2, PATIENCE)}
        load.goes_on(20)
    assert not load.failures
    assert pool[spare["vm_id"]] == spare["pid"]


def test_a_machine_gets_other_layers(whole: Swarm) -> None:
    """Its edges are unplugged and others plugged; with tcp an interface comes and goes, more than
    once. It serves each layer.
    """
    walker, pid = (whole.instances("app")[0][key] for key in ("vm_id", "pid"))
    with Load(whole.lab, connections=2, method="GET") as load:
        for layer in ("tcp", "tls", "tcp", "http", "app"):
            whole.command("assign", str(walker), layer)
            eventually(partial(serves, whole, walker, layer), f"{walker} serves {layer}", PATIENCE)
            assert whole.pids()[walker] == pid and edges_mapped(pid) == EDGES[layer]
            load.goes_on(10)
    assert not load.failures
    assert {layer: len(whole.instances(layer)) for layer in EDGES} == {"tcp": 1, "tls": 1, "http": 1, "app": 2}


def test_a_machine_is_killed_under_load(whole: Swarm) -> None:
    victim = whole.eventually_active("app", 2, PATIENCE)[0]
    with Load(whole.lab, connections=4, method="GET") as load:
        kill(victim["pid"])
        load.goes_on(50)
        eventually(lambda: victim["vm_id"] not in whole.pids(), "it is taken away", PATIENCE)
        whole.eventually_active("app", 2, PATIENCE)
        load.goes_on(20)
    assert not load.failures
    assert any(f"app instance {victim['vm_id']} " in text for text in whole.events("instance-failed"))


def test_a_stopped_machine_is_found(whole: Swarm) -> None:
    with Load(whole.lab, connections=4, method="GET") as load:
        stall_is_found(whole, "app", 2, PATIENCE)
        load.goes_on(20)
    assert not load.failures


def pause(monitor: Path) -> None:
    """Stops the machine's processors. QEMU listens to one at a time, so there must be no manager just then."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(monitor))
        lines = sock.makefile("rw")
        for command in ("qmp_capabilities", "stop"):
            print(json.dumps({"execute": command}), file=lines, flush=True)
            while "return" not in json.loads(lines.readline()):
                pass


def test_a_paused_machine_is_found(whole: Swarm) -> None:
    """Its QEMU answers, only the guest stands."""
    victim = whole.eventually_active("app", 2, PATIENCE)[0]["vm_id"]
    former = whole.manager_pid()
    with Load(whole.lab, connections=4, method="GET") as load:
        kill(former)
        pause(whole.run_dir / "instances" / f"{victim}.qmp")
        eventually(lambda: manager_of(whole) not in (None, former), "another manager")
        event = eventually(lambda: whole.failed(victim), f"instance {victim} is found", PATIENCE)
        whole.eventually_active("app", 2, PATIENCE)
        load.goes_on(20)
    assert "gave no heartbeat" in event["text"]
    assert not load.failures


def test_the_only_first_layers_machine_is_killed(whole: Swarm) -> None:
    """Its port goes with it, and the next one's comes."""
    (victim,) = whole.instances("tcp")
    kill(victim["pid"])
    eventually(lambda: any(i["vm_id"] != victim["vm_id"] for i in whole.instances("tcp")), "another tcp", PATIENCE)
    assert curl(whole.lab.client, f"https://{whole.lab.vip4}/") == INDEX
    assert not (whole.run_dir / "vhost" / str(victim["vm_id"])).exists()


# ---- mixed with processes, and guests that misbehave


@pytest.fixture(scope="module")
def mixed(module_lab: Lab, images: Path, whole: Swarm) -> Iterator[Swarm]:
    """Machine and process meet at every edge. The other swarm is down then: they would share the address."""
    whole.command("down")
    assert cgroups.left(whole.run_dir) == []
    with swarm_made(module_lab, MIXED) as made:
        yield made


def test_machines_and_processes_on_the_same_edges(mixed: Swarm) -> None:
    assert {i["layers"][0]: i["driver"] for i in mixed.instances()} == {
        "tcp": "process", "tls": "qemu", "http": "process", "app": "qemu"}
    with Load(mixed.lab, connections=4) as load:
        load.goes_on(100)
    assert not load.failures


def test_a_trace_goes_forward_through_both_clocks(mixed: Swarm) -> None:
    """A guest's clock began at its boot: its steps must lie between those of the processes around them."""
    def steps() -> dict[tuple[str, str], int] | None:
        curl(mixed.lab.client, f"https://{mixed.lab.vip4}/")
        events = call(mixed.run_dir, "GET", "/v1/trace")["events"]
        over = [e for e in events if (e["layer"], e["point"]) == ("tcp", "done")]
        mine = [e for e in events if over and e["request_id"] == over[-1]["request_id"]]
        found = {(e["layer"], e["point"]): int(e["time_ns"]) for e in mine}
        return found if {("tcp", "accept"), ("tls", "in"), ("http", "in"), ("tls", "out")} <= found.keys() else None

    call(mixed.run_dir, "POST", "/v1/trace", {"every": 1})
    at = eventually(steps, "a connection's steps")
    call(mixed.run_dir, "POST", "/v1/trace", {"every": 0})
    slack = 50_000_000
    assert at["tcp", "accept"] - slack < at["tls", "in"] < at["http", "in"] + slack
    assert abs(at["tls", "in"] - at["tcp", "accept"]) < 5_000_000_000


def test_guests_that_reset_in_a_loop_are_held_back(mixed: Swarm, image: Image, images: Path, tmp_path: Path) -> None:
    """The next start waits, the reason is told, nobody else notices; with the right image it is well again."""

    def held_back() -> bool:
        assert curl(mixed.lab.client, f"https://{mixed.lab.vip4}/") == INDEX
        return bool(mixed.events("crash-loop"))

    switch(images, fake(image, tmp_path / "resets", "reboot(RB_AUTOBOOT)"))
    try:
        kill(mixed.instances("app")[0]["pid"])
        eventually(held_back, "the loop is noticed", 2 * PATIENCE)
    finally:
        switch(images, image.folder)
    mixed.eventually_active("app", 2, PATIENCE)
    assert any("the guest reset itself" in text for text in mixed.events("instance-failed"))


def test_silent_machines_are_replaced(mixed: Swarm, image: Image, images: Path, tmp_path: Path) -> None:
    """One never answers, and while the manager waits for it another one stands still. Nobody loses a request."""
    victim = mixed.eventually_active("app", 2, PATIENCE)[0]
    switch(images, fake(image, tmp_path / "sleeps", "pause()"))
    mixed.configure({**MIXED, "swarm": {"boot_timeout": "5s"}})
    mixed.command("reload")
    try:
        with Load(mixed.lab, connections=2, method="GET") as load:
            mixed.command("scale", "app=3")
            os.kill(victim["pid"], signal.SIGSTOP)
            eventually(lambda: victim["vm_id"] not in mixed.pids(), "the one that stands still is ended", PATIENCE)
            assert failures(mixed, "gave no heartbeat") and not failures(mixed, "was not ready within")
            eventually(lambda: bool(failures(mixed, "was not ready within")), "the other one is ended", PATIENCE)
            load.goes_on(20)
        assert not load.failures
    finally:
        switch(images, image.folder)
        mixed.configure(MIXED)
    mixed.command("reload")
    mixed.eventually_active("app", 2, PATIENCE)


def test_the_manager_dies_while_a_machine_starts(mixed: Swarm, image: Image, images: Path, tmp_path: Path) -> None:
    """The next one ends that machine, and starts another in its place."""
    mixed.eventually_active("app", 2, PATIENCE)
    former = mixed.manager_pid()
    switch(images, fake(image, tmp_path / "sleeps", "pause()"))
    try:
        with Load(mixed.lab, connections=2, method="GET") as load:
            mixed.command("scale", "app=3")
            left = eventually(lambda: started(mixed), "a machine starts", PATIENCE)
            kill(former)
            eventually(lambda: manager_of(mixed) not in (None, former), "another manager")
            eventually(lambda: not processes.of_instance(mixed.run_dir, left), "the machine is ended")
            load.goes_on(20)
        assert not load.failures
    finally:
        switch(images, image.folder)
    mixed.eventually_active("app", 3, PATIENCE)
    assert failures(mixed, "did not live to start it") and not mixed.events("failed")
    mixed.command("scale", "app=2")


def started(swarm: Swarm) -> int | None:
    """The VMID of a machine of layer app that is starting, and has a process."""
    pool = [i["vm_id"] for i in swarm.instances("app", "booting")]
    return next((vm_id for vm_id in pool if processes.of_instance(swarm.run_dir, vm_id)), None)


def failures(swarm: Swarm, words: str) -> list[str]:
    return [text for text in swarm.events("instance-failed") if words in text]


# ---- what can not be started


@pytest.fixture
def prepared(module_lab: Lab, images: Path, mixed: Swarm) -> Iterator[Swarm]:
    """Not started; one machine."""
    if mixed.run_dir.exists():
        mixed.command("down")
    only = {f"layer.{layer}": {"instances": 1} for layer in ("tcp", "tls", "http")}
    with swarm_prepared(module_lab, {"swarm": {"boot_timeout": "3s"}, **only,
                                 "layer.app": {"driver": "qemu", "instances": 1}}) as made:
        yield made


def refused(swarm: Swarm, status: int, *words: str) -> None:
    """`up` ends with one line that has all the words, and nothing is there then."""
    done = swarm.command("up", str(swarm.config), "--detach", ok=False)
    assert done.returncode == status, done.stdout + done.stderr
    assert swarm.left() == []
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("swarmline: "), done.stderr
    assert not [word for word in words if word not in done.stderr], done.stderr


def test_a_guest_that_never_is_ready(prepared: Swarm, image: Image, images: Path, tmp_path: Path) -> None:
    switch(images, fake(image, tmp_path / "sleeps", "pause()"))
    try:
        log = f"{prepared.run_dir}.failed/instance-"
        refused(prepared, INSTANCE, "app instance", "was not ready within", f"its log is {log}")
        assert list(Path(f"{prepared.run_dir}.failed").glob("instance-*.log")), "kept, as `down` removes its folder"
    finally:
        switch(images, image.folder)


def test_images_that_can_not_be_used(prepared: Swarm, image: Image, images: Path, tmp_path: Path) -> None:
    broken = fake(image, tmp_path / "broken", "pause()")
    data = bytearray((broken / "initramfs").read_bytes())
    data[-1000] ^= 1
    (broken / "initramfs").write_bytes(data)
    missing = fake(image, tmp_path / "missing", "pause()")
    (missing / "vmlinux").unlink()
    try:
        switch(images, broken)
        refused(prepared, HOST, "initramfs is damaged", "swarmline images build")
        switch(images, missing)
        refused(prepared, HOST, "vmlinux", "swarmline images build")
        (images / "guest").unlink()
        refused(prepared, HOST, "there is no guest image", "swarmline images build")
        (images / "guest").symlink_to(broken)
    finally:
        switch(images, image.folder)


def test_too_little_memory(prepared: Swarm) -> None:
    """Warm machines count."""
    prepared.configure({"layer.app": {"driver": "qemu", "instances": 3, "memory": "60GiB"}, "pool": {"vms": 1}})
    refused(prepared, HOST, "4 virtual machines need", "lower `memory`")


def test_files_that_do_not_fit(prepared: Swarm) -> None:
    (prepared.site / "big").write_bytes(bytes(100 << 20))
    refused(prepared, HOST, "does not fit into a machine of 128 MiB", "more `memory`")
