# SPDX-License-Identifier: Apache-2.0
"""The closed loop in one run: a swarm on a machine that has an IOMMU gives a PCI function to one of its virtual
machines, which seals TLS records by it; it is taken away under load, given again, and goes back to the host at the end.

The machine is itself a virtual one (host_rig). What is real: `[hardware] allow` and `wants`, QEMU's virtio-crypto as
a function behind a root port of its own, its driver of the host and vfio-pci, the IOMMU's mappings, the plugging by QMP
into machines that KVM runs (on the SVM that the outer QEMU emulates), uio_pci_generic there, the weights, the clients.
What is played: that the function seals records. virtio-crypto can not; a driver of software in the guest's DPDK does it
in its place (guest_card.c), in guests where OpenSSL has no instructions for AES.

`make verify` runs it (tests/verify, `closed-loop`), not `make test`: the SVM that QEMU emulates sometimes ends the
kernel of the machine that plays the host. Each step of it alone is also in test_host.py and test_guest_accelerator.py.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from support.needs import require

pytest.register_assert_rewrite("vm.host_rig")

from vm.cards import VIRTIO, card_image  # noqa: E402
from vm.host_rig import Host, host_made  # noqa: E402

from pipeline.host.images import CRYPTO, Image  # noqa: E402

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.dpdk, pytest.mark.timeout(420)]

MEMORY = 4096       # MiB; two machines of 256 in it, three edges, and what the swarm needs


@pytest.fixture
def host(image: Image, crypto_image: Image) -> Iterator[Host]:
    require("root")
    with TemporaryDirectory(prefix="slt-host-", dir="/tmp") as name:
        folder = Path(name)
        inside = folder / "inside"
        inside.mkdir()
        made = card_image(crypto_image, folder, VIRTIO)
        made.rename(inside / CRYPTO)
        kernel = inside / CRYPTO / "vmlinux"
        whole = kernel.read_bytes()
        kernel.unlink()                  # a link to what is not in there
        kernel.write_bytes(whole)
        with host_made(image, folder, side="vm.swarm_side", memory=MEMORY, inside=inside) as host:
            yield host


def test_a_card_is_given_used_lost_and_given_back(host: Host) -> None:
    assert host.call("accelerator") == ["kvm", ""]
    found: dict[str, Any] = host.call("closed_loop", timeout=300.0)
    print(found)
    assert (found["before"], found["bound"], found["noted"]["driver"]) == ("virtio-pci", "vfio-pci", "virtio-pci")
    assert len(found["has"]) == 1 and found["served"]
    assert found["driver without"] == "virtio-pci" and len(found["again"]) == 1
    assert not found["failures"] and not found["reopened"]
    with_it, again = (found[f"weights {when}"]["card figures"] for when in ("with", "again"))
    # that the weights are those of the figures was waited for there; how far apart they are is the clocks' business
    assert with_it["kind"] == again["kind"] == "device"
    assert min(sum(with_it["seal_mbps"]), sum(again["seal_mbps"])) > sum(found["figures without"])
    assert (found["after"], found["record after"], found["left"]) == ("virtio-pci", False, [])
