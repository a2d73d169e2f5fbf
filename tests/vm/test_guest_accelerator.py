# SPDX-License-Identifier: Apache-2.0
"""An accelerator in a virtual machine: plugged in while that runs, found, used for TLS, taken away; no request notices.

QEMU's devices can not seal records of TLS. So one of them (edu) is played by a driver of software in the guest
(guest_card.c), in machines whose processor has no instructions for AES; and virtio-crypto, which is what it says, is
told to be of no use. All else is as it would be with a real card, but for who plugs it: a monitor beside the manager's.
"""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from support.lab import Lab
from system.clients import Load, curl
from system.swarm_rig import INDEX, Swarm, eventually, swarm_made
from vm.cards import card_image, kind_of, weights_follow
from vm.guest_rig import Qmp

from pipeline.host import images as guest_images
from pipeline.host.images import CRYPTO, Image
from pipeline.host.processes import BIN_VARIABLE

pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.qemu, pytest.mark.dpdk, pytest.mark.timeout(240)]

PATIENCE = 60.0
CHANGES: dict[str, Any] = {"layer.tcp": {"instances": 1}, "layer.http": {"instances": 1}, "layer.app": {"instances": 1},
                           "layer.tls": {"instances": 2, "driver": "qemu", "wants": "crypto"}}
# the manager has the machine's own monitor
QEMU = """#!/bin/sh
for word; do case $word in --vm-id=*) id=${{word#*=}};; esac; done
exec /usr/bin/qemu-system-x86_64 "$@" -qmp unix:{folder}/$id,server=on,wait=off
"""


@dataclass(frozen=True)
class Rig:
    swarm: Swarm
    monitors: Path

    def tell(self, vm_id: int, command: str, **arguments: Any) -> None:
        """One command to a machine's QEMU."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.monitors / str(vm_id)))
            qmp = Qmp(sock)
            qmp(command, **arguments)
            if command == "device_del":
                qmp.event("DEVICE_DELETED")
            qmp.close()

    def plug(self, vm_id: int) -> None:
        self.tell(vm_id, "device_add", driver="edu", id="card")

    def pull(self, vm_id: int) -> None:
        self.tell(vm_id, "device_del", id="card")

    def said(self, vm_id: int) -> str:
        return (self.swarm.run_dir / f"log/instance-{vm_id}.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """One that QEMU, who is nobody, may enter."""
    with TemporaryDirectory(prefix="slt-card-", dir="/tmp") as made:
        Path(made).chmod(0o755)
        yield Path(made)


@pytest.fixture(scope="module")
def rig(module_lab: Lab, crypto_image: Image, folder: Path) -> Iterator[Rig]:
    images, monitors, programs = (folder / name for name in ("images", "monitors", "bin"))
    for made in (images, monitors, programs):
        made.mkdir()
    (images / CRYPTO).symlink_to(card_image(crypto_image, folder))
    monitors.chmod(0o777)
    script = programs / "qemu-system-x86_64"
    script.write_text(QEMU.format(folder=monitors))
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(guest_images.FOLDER_VARIABLE, str(images))
        patch.setenv(BIN_VARIABLE, str(programs))
        with swarm_made(module_lab, CHANGES) as swarm:
            yield Rig(swarm, monitors)


def test_a_card_in_a_machine_seals_records_comes_and_goes(rig: Rig) -> None:
    """Its weight follows, and no request fails. The guests' clocks count what else runs here, so numbers are rough."""
    first, other = sorted(i["vm_id"] for i in rig.swarm.eventually_active("tls", 2, PATIENCE))
    software = kind_of(rig.swarm, first, "software")
    with Load(rig.swarm.lab, connections=2, method="GET") as before:
        rig.plug(first)
        device = kind_of(rig.swarm, first, "device")
        assert all(ours > theirs for ours, theirs in zip(device.seal_mbps, software.seal_mbps, strict=True))
        with Load(rig.swarm.lab, connections=6, method="GET") as load:      # most of them by the card
            load.goes_on()
            rig.pull(first)
            kind_of(rig.swarm, first, "software")
            load.goes_on()
            rig.plug(first)
            kind_of(rig.swarm, first, "device")
            load.goes_on()
        before.goes_on()
    assert not before.failures + load.failures
    assert (before.reopened, load.reopened) == (before.connections, load.connections), "one was ended"
    kind_of(rig.swarm, other, "software")
    assert rig.said(first).count("is gone") == 1
    weights_follow(rig.swarm)
    rig.pull(first)
    kind_of(rig.swarm, first, "software")        # nobody asks it to seal anything: it notices by itself
    weights_follow(rig.swarm)


def test_one_that_can_not_seal_records_is_told(rig: Rig) -> None:
    """virtio-crypto is bound, opened by DPDK, and asked what it can do."""
    _, other = sorted(i["vm_id"] for i in rig.swarm.eventually_active("tls", 2, PATIENCE))
    rig.tell(other, "object-add", id="backend", **{"qom-type": "cryptodev-backend-builtin"})
    rig.tell(other, "device_add", driver="virtio-crypto-pci", id="card", cryptodev="backend")
    (line,) = eventually(lambda: [x for x in rig.said(other).splitlines() if "is not used" in x], "it is told")
    assert "crypto_virtio" in line and "neither AES-GCM nor ChaCha20-Poly1305" in line
    rig.pull(other)
    rig.plug(other)
    kind_of(rig.swarm, other, "device")       # the next one is used
    assert curl(rig.swarm.lab.client, f"https://{rig.swarm.lab.vip4}/") == INDEX
