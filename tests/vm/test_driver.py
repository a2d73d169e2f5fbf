# SPDX-License-Identifier: Apache-2.0
"""The guest driver, while devices come and go under its users."""

import re
import subprocess
import time
from pathlib import Path

import pytest
from support import ROOT
from vm.guest_rig import Guest, guest_made

from pipeline.host import cpio, images
from pipeline.host.holder_client import HolderClient
from pipeline.host.images import Image
from pipeline.policy.model import Edge, LayerId

pytestmark = pytest.mark.qemu

STRESS = Path(__file__).with_name("driver_stress.c")
ROUNDS = 12
TROUBLE = re.compile(r"BUG:|Oops|WARNING:|Call Trace|general protection|Bad page|panic")


def stressed(image: Image, folder: Path) -> Path:
    """The image with another /init behind it: the later archive wins."""
    program, out = folder / "stress", folder / "initramfs"
    subprocess.run(["gcc", "-static", "-O2", "-Wall", "-I", ROOT / "c", "-o", program, STRESS], check=True)
    out.write_bytes(images.initramfs_with(image, {"init": cpio.regular(program.read_bytes(), 0o755)}))
    return out


def seen(guest: Guest) -> dict[str, int]:
    """The latest numbers of all workers together."""
    latest = dict(re.findall(r"worker (\d): (opened .*)", guest.console.read_text(errors="replace")))
    total: dict[str, int] = {}
    for line in latest.values():
        for name, number in re.findall(r"(\w+) (\d+)", line):
            total[name] = total.get(name, 0) + int(number)
    return total


def test_devices_come_and_go_under_load(image: Image, vm_dir: Path, holder: HolderClient, tmp_path: Path) -> None:
    """On two processors: opens, faults, rings and polls race with the removal. No mapping outlives its device."""
    with guest_made(image, vm_dir, holder) as guest:
        edges = [guest.edge(Edge(LayerId.HTTP, LayerId.APP, 1, 1)), guest.edge(Edge(LayerId.TCP, LayerId.TLS, 1, 1))]
        guest.start("-smp", "2", initramfs=stressed(image, tmp_path))
        deadline = time.monotonic() + 12
        while "stress begins" not in guest.said():
            assert time.monotonic() < deadline, guest.said()
            time.sleep(0.05)
        for number in range(ROUNDS):
            name = f"edge{number}"
            guest.plug(edges[number % 2], name)
            time.sleep(0.15)           # long enough to be mapped, short enough to be caught in the middle of it
            guest.unplug(name)
            guest.qmp.event("DEVICE_DELETED")
            guest.qmp("object-del", id=f"m-{name}")
        time.sleep(1.1)                # the workers say what they saw
        numbers = seen(guest)
        print(numbers)
        assert not TROUBLE.search(guest.console.read_text(errors="replace")), guest.said()
        assert numbers["opened"] >= ROUNDS
        assert numbers["bus_error"] + numbers["hung_up"] > 0, "no removal met a user, so the test proves nothing"
        assert numbers["stale"] == 0
        assert guest.qemu.poll() is None
        touched = re.findall(r"touched (512) pages with (\d+) faults", guest.console.read_text(errors="replace"))
        assert touched
        assert min(int(faults) for _, faults in touched) <= 4, "an aligned region of 2 MiB is mapped by one entry"
