# SPDX-License-Identifier: Apache-2.0
"""What outlives the manager: pins, adoption, the program on an interface; and what people see of it."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from bpf.bench import CLIENT4, HTTPS, SERVICES, VMS, Bench, entered, instance
from bpf.packets import SYN4, eth, ip4, ip6, tcp, udp
from pipeline._native import ffi, lib
from support import ROOT

from pipeline.actor.routes import Routes
from pipeline.errors import ClassifierError
from pipeline.host.classifier import Classifier, Pins, mount_pins, pin_root, umount_pins
from pipeline.host.pins import MAPS
from pipeline.policy.model import LayerId, Route, RoutingTable, VmState

pytestmark = pytest.mark.bpf


@pytest.fixture
def pins_dir(run_dir: Path) -> Iterator[Path]:
    """RUN_DIR/bpf/v1 on a bpffs; unmounted at the end."""
    yield mount_pins(run_dir)
    umount_pins(run_dir)


@pytest.fixture
def veth(netns: Callable[[], str]) -> str:
    """A network namespace with the two ends of a veth, ``nic`` and ``far``."""
    name = netns()
    script = (
        "link add nic address 02:00:00:00:00:0a type veth peer name far address 02:00:00:00:00:0b\n"
        "link set nic up\nlink set far up\n"
    )
    subprocess.run(["ip", "-n", name, "-batch", "-"], input=script, text=True, check=True)
    return name


def pinned(*args: object) -> Any:
    """``bpftool -j ...``"""
    done = subprocess.run(["bpftool", "-j", *map(str, args)], check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def program_of(root: Path) -> int:
    return int(pinned("link", "show", "pinned", root / "link")["prog_id"])


def test_second_manager_adopts_everything(pins_dir: Path) -> None:
    with Classifier.load(pins_dir) as first:
        bench = Bench(first)
        bench.reset()
        seen = bench.send(SYN4)
        seed = first._maps["config"].get(0).hash_seed
    with Classifier.load(pins_dir) as second:
        assert second._maps["config"].get(0).hash_seed == seed != 0
        assert [(s.name, s.index, s.address.version) for s in second.services()] == [
            ("https", 0, 4),
            ("https", 0, 4),
            ("https", 0, 6),
            ("dns", 1, 4),
            ("dns", 1, 6),
        ]
        assert second.counters()["flow_new"] == 1
        again = Bench(second)
        again.plug()
        known = again.send(SYN4)
        assert (known.verdict, known.run.meta) == ("flow_known", seen.run.meta)
        again.unplug()
        bench.unplug()
        second.unpin()


def test_versions_have_folders_of_their_own(run_dir: Path) -> None:
    assert pin_root(run_dir) == run_dir / "bpf" / f"v{lib.SL_ABI_VERSION}"


def test_mount_twice_is_once(run_dir: Path) -> None:
    mount_pins(run_dir)
    mount_pins(run_dir)
    mounts = Path("/proc/self/mountinfo").read_text().count(f" {run_dir}/bpf ")
    umount_pins(run_dir)
    assert mounts == 1
    assert not (run_dir / "bpf").exists()
    umount_pins(run_dir)


def test_unpin_leaves_nothing(pins_dir: Path) -> None:
    with Classifier.load(pins_dir) as classifier:
        assert {pin.name for pin in pins_dir.iterdir()} == set(MAPS)
        classifier.unpin()
        classifier.unpin()
    assert not pins_dir.exists()


# ---- on an interface ---------------------------------------------------------------------------------------


def send(netns: str, frame: bytes) -> None:
    with entered(netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as far:
        far.bind(("far", 0))
        far.send(frame)


def wait_for(classifier: Pins, counter: str, value: int) -> None:
    """The kernel runs the program a moment after the frame was sent."""
    deadline = time.monotonic() + 5
    while classifier.counters()[counter] < value:
        assert time.monotonic() < deadline, f"{counter} is {classifier.counters()[counter]}, not {value}"
        time.sleep(0.001)


@pytest.mark.netns
def test_attach_survives_and_is_replaced_in_place(pins_dir: Path, veth: str) -> None:
    with Classifier.load(pins_dir) as first, entered(veth):
        first.set_services(SERVICES)
        first.attach("nic")
        assert first.attached_to() == socket.if_nametoindex("nic")
    link, program = pinned("link", "show", "pinned", pins_dir / "link")["id"], program_of(pins_dir)
    send(veth, SYN4)
    with Pins(pins_dir) as survivors:
        wait_for(survivors, "drop_no_instance", 1)
    with Classifier.load(pins_dir) as second:
        with entered(veth):
            second.attach(socket.if_nametoindex("nic"))
        assert pinned("link", "show", "pinned", pins_dir / "link")["id"] == link
        assert program_of(pins_dir) != program
        send(veth, SYN4)
        wait_for(second, "drop_no_instance", 2)
        second.detach()
        second.detach()
        assert second.attached_to() is None
        with entered(veth):
            assert (
                b"xdp"
                not in subprocess.run(["ip", "link", "show", "nic"], capture_output=True, check=True).stdout
            )


@pytest.mark.netns
def test_replacing_under_load_loses_nothing(pins_dir: Path, veth: str) -> None:
    """Each frame is judged by the old program or by the new one."""
    nb_frames, nb_replaced = 3000, 0
    with Classifier.load(pins_dir) as one, Classifier.load(pins_dir) as other, entered(veth):
        one.set_services(SERVICES)
        one.attach("nic")
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as far:
            far.bind(("far", 0))
            for i in range(nb_frames):
                far.send(SYN4)
                if i % 300 == 0:
                    (other, one)[nb_replaced % 2].attach("nic")
                    nb_replaced += 1
        wait_for(one, "drop_no_instance", nb_frames)
        assert one.counters()["drop_no_instance"] == nb_frames
        one.unpin()


@pytest.mark.netns
def test_link_of_a_vanished_interface_is_made_anew(pins_dir: Path, veth: str) -> None:
    with Classifier.load(pins_dir) as classifier, entered(veth):
        classifier.attach("nic")
        subprocess.run(["ip", "link", "del", "nic"], check=True)
        assert classifier.attached_to() is None
        subprocess.run(["ip", "link", "add", "nic", "type", "veth", "peer", "name", "far"], check=True)
        classifier.attach("nic")
        assert classifier.attached_to() == socket.if_nametoindex("nic")
        classifier.unpin()


@pytest.mark.netns
def test_jumbo_frames_are_accepted(pins_dir: Path, veth: str) -> None:
    """MTU 9000 needs a program for frames of several buffers, else the driver refuses it."""
    for end in ("nic", "far"):
        subprocess.run(["ip", "-n", veth, "link", "set", end, "mtu", "9000"], check=True)
    with Classifier.load(pins_dir) as classifier:
        classifier.set_services(SERVICES)
        with entered(veth):
            classifier.attach("nic")
        send(veth, eth(ip4(tcp() / bytes(8900))))
        wait_for(classifier, "drop_no_instance", 1)
        classifier.unpin()


# ---- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.netns
def test_another_program_on_the_interface(run_dir: Path, pins_dir: Path, veth: str) -> None:
    elsewhere = run_dir / "elsewhere"
    with Classifier.load(mount_pins(elsewhere)) as foreign, Classifier.load(pins_dir) as ours, entered(veth):
        foreign.attach("nic")
        with pytest.raises(
            ClassifierError, match=r"nic has another XDP program already \(id \d+, native mode\)"
        ) as caught:
            ours.attach("nic")
        assert "bpftool prog show id" in caught.value.hint
        assert not (pins_dir / "link").exists()
        foreign.unpin()
        ours.unpin()
    umount_pins(elsewhere)


@pytest.mark.netns
def test_interfaces_that_can_not(pins_dir: Path, veth: str) -> None:
    with Classifier.load(pins_dir) as classifier, entered(veth):
        with pytest.raises(ClassifierError, match="no interface missing0"):
            classifier.attach("missing0")
        with pytest.raises(ClassifierError, match="native XDP mode") as caught:
            classifier.attach("lo")
        assert "native XDP" in caught.value.hint
        classifier.attach("nic")
        with pytest.raises(ClassifierError, match="is on interface"):
            classifier.attach("far")
        classifier.unpin()


def test_object_that_does_not_load(pins_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="no BPF object"):
        Classifier.load(pins_dir, tmp_path / "missing.o")
    (tmp_path / "bad.o").write_bytes(b"no object")
    with pytest.raises(ClassifierError, match="does not load"):
        Classifier.load(pins_dir, tmp_path / "bad.o")
    assert list(pins_dir.iterdir()) == []


def test_pins_of_another_build(pins_dir: Path) -> None:
    """Nothing is left of the attempt, and what was there stays."""
    fd = lib.sl_bpf_map_create(2, b"vms", 4, 8, 4, 0)
    assert lib.sl_bpf_pin_put(fd, os.fsencode(pins_dir / "vms")) == 0
    os.close(fd)
    with pytest.raises(ClassifierError, match="another build") as caught:
        Classifier.load(pins_dir)
    assert "swarmline down" in caught.value.hint
    assert [pin.name for pin in pins_dir.iterdir()] == ["vms"]
    (pins_dir / "vms").unlink()


@pytest.mark.root
def test_without_rights(run_dir: Path) -> None:
    """One line that says what is missing, and no half-made folder of pins."""
    run_dir.chmod(0o777)
    script = (
        "import os, sys, pathlib, pipeline.errors, pipeline.host.classifier as c\n"
        "os.setuid(65534)\n"
        "try:\n    c.Classifier.load(c.mount_pins(pathlib.Path(sys.argv[1])))\n"
        "except pipeline.errors.ClassifierError as error:\n    print(error.explain())\n"
    )
    command = [sys.executable, "-c", script, str(run_dir)]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert "mount a bpffs" in done.stdout
    assert "run it as root" in done.stdout
    assert not pin_root(run_dir).exists()


def test_no_pins(tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match="No such file") as caught:
        Pins(tmp_path)
    assert "no swarm runs" in caught.value.hint


# ---- what people see ---------------------------------------------------------------------------------------


@pytest.fixture
def populated(run_dir: Path, pins_dir: Path) -> Iterator[Path]:
    """The pins of a swarm whose manager is dead, after a few packets."""
    with Classifier.load(pins_dir) as classifier:
        bench = Bench(classifier)
        bench.reset()
        routes = {LayerId.TCP: tuple(Route(vm_id, 10 * vm_id) for vm_id in VMS)}
        classifier.set_vms([instance(1), instance(2), instance(3, VmState.DRAINING)], RoutingTable(7, routes))
        classifier.set_queues(2)
        for frame in (SYN4, SYN4, eth(ip6(tcp(40001))), eth(ip4(udp())), eth(ip4(tcp(dport=22)))):
            bench.send(frame)
        bench.unplug()
    yield pins_dir
    with Pins(pins_dir) as pins:
        pins.unpin()


def test_service_that_comes_back_has_a_table(pins_dir: Path) -> None:
    """The classifier forgets the table of a service that goes."""
    with Classifier.load(pins_dir) as classifier:
        nic = SimpleNamespace(devargs="")
        held: Any = SimpleNamespace(classifier=classifier, router=None,
                                    config=SimpleNamespace(services=SERVICES, nic=nic))
        routes = Routes(held)
        routes.table = RoutingTable(1, {LayerId.TCP: (Route(1, 100, 0, 0, VmState.ACTIVE),)})
        routes.set_tables()
        classifier.set_services(SERVICES)
        classifier.set_services(())
        assert classifier.table(HTTPS.index) is None
        routes.set_tables()
        assert set(classifier.table(HTTPS.index) or ()) == {1}


def test_bpftool_shows_names(populated: Path) -> None:
    structs = {
        name: (key, value)
        for name, (key, value) in MAPS.items()
        if value.startswith("struct") and name != "frags"
    }
    for name, (key, value) in structs.items():
        assert pinned("map", "show", "pinned", populated / name)["name"] == name
        entry = pinned("map", "dump", "pinned", populated / name)[0]
        value_of = entry["formatted"]["values"][0] if name == "counters" else entry["formatted"]
        assert set(value_of["value"]) == {field for field, _ in ffi.typeof(value).fields}
        if key.startswith("struct"):
            assert set(entry["formatted"]["key"]) == {field for field, _ in ffi.typeof(key).fields}
    service = pinned("map", "dump", "pinned", populated / "services")
    assert {entry["formatted"]["value"]["name"] for entry in service} == {"https", "dns"}


def maps(run_dir: Path, *args: str) -> str:
    command = [sys.executable, str(ROOT / "tools/maps"), f"--run-dir={run_dir}", *args]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_tool_in_json(populated: Path, run_dir: Path) -> None:
    shown = json.loads(maps(run_dir, "--json"))
    assert (shown["epoch"], shown["nb_queues"], shown["ifindex"]) == (7, 2, None)
    assert [vm["vm_id"] for vm in shown["routing_table"]["tcp"]] == [2, 1, 3]
    assert [vm["weight"] for vm in shown["routing_table"]["tcp"]] == [20, 10, 30]
    assert shown["routing_table"]["tcp"][2]["state"] == "draining"
    assert {(s["name"], s["address"], s["port"]) for s in shown["services"]} == {
        (s.name, str(address), s.port) for s in SERVICES for address in s.addresses
    }
    assert [sum(table["slots"].values()) for table in shown["maglev"]] == [lib.SL_MAGLEV_SIZE] * 2
    assert {(f["client"], f["port"], f["service"], f["protocol"]) for f in shown["flows"]} == {
        (CLIENT4, 443, "https", "tcp"),
        ("fd77::2", 443, "https", "tcp"),
        (CLIENT4, 53, "dns", "udp"),
    }
    assert (
        shown["counters"]["flow_new"],
        shown["counters"]["flow_known"],
        shown["counters"]["pass_not_ours"],
    ) == (3, 1, 1)


def test_tool_in_words(populated: Path, run_dir: Path) -> None:
    text = maps(run_dir)
    for word in (
        "RoutingTable",
        "draining",
        "10.77.0.10 443/tcp",
        HTTPS.name,
        "33.",
        "flow_known",
        "10.77.0.2 40000",
    ):
        assert word in text
    assert "Flows" not in maps(run_dir, "services")


def test_tool_without_a_swarm(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools/maps"), f"--run-dir={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == ClassifierError.exit_code
    assert "no swarm runs" in done.stderr
    assert done.stderr.count("\n") == 1
