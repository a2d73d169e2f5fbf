# SPDX-License-Identifier: Apache-2.0
"""Devices for virtual machines, for real: on a machine that has an IOMMU because it is a virtual one itself.

One boot serves all tests of this file; ``host_side`` is what runs there.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.needs import require

pytest.register_assert_rewrite("vm.host_rig")

from vm.host_rig import VIRTIOFSD, Host, host_made  # noqa: E402

from pipeline.host.images import Image  # noqa: E402
from pipeline.host.pins import MAPS  # noqa: E402

pytestmark = [pytest.mark.qemu, pytest.mark.root, pytest.mark.timeout(260)]

KEY, IV = bytes(range(16)), bytes(range(16, 32))


@pytest.fixture(scope="module")
def host(image: Image) -> Iterator[Host]:
    require("root")
    assert VIRTIOFSD.exists(), "install qemu-system-common"
    with TemporaryDirectory(prefix="slt-host-", dir="/tmp") as folder, host_made(image, Path(folder)) as made:
        yield made


def test_the_inventory_of_a_machine_with_an_iommu(host: Host) -> None:
    facts = host.call("machine_facts")
    assert facts["iommu"] and facts["nodes"] == 1 and facts["cpus"] == 2
    edus = [f for f in facts["functions"] if f["device"] == "11e8"]
    alone, beside = sorted(edus, key=lambda f: f["isolation"] != "yes")
    (crypto,) = (f for f in facts["functions"] if f["device"] == "1054")
    (nic,) = (f for f in facts["functions"] if f["interfaces"])
    (pf,) = (f for f in facts["functions"] if f["total_vfs"])
    assert alone["isolation"] == "yes" and alone["resets"] == ["bus"] and alone["driver"] == ""
    assert beside["group"] == nic["group"] and beside["isolation"] == f"only with {nic['address']}"
    assert crypto["model"]["dpdk"] == "crypto_virtio" and crypto["kind"] == "accelerator" and "bus" in crypto["resets"]
    assert nic["driver"] == "virtio-pci" and nic["kind"] == "nic" and nic["interfaces"] == ["eth0"]
    assert pf["driver"] == "nvme" and pf["total_vfs"] == 4 and pf["vfs"] == []


def test_the_classifier_loads_into_debian_s_kernel(host: Host) -> None:
    """Its verifier refuses more than later ones do."""
    assert set(host.call("classifier_loads")) == set(MAPS)


def test_edu_reads_and_writes_through_the_iommu_and_interrupts(host: Host) -> None:
    found = host.call("edu_dma")
    assert found["can_reset"] and found["alive"]
    assert found["interrupts"] == [True, True] and found["copied"]
    assert found["blocked"] and found["faults"], "what is not mapped must be out of reach"
    assert found["held"][0] == "GroupBusy" and str(found["own_pid"]) in found["held"][1]
    assert found["users"] == [found["own_pid"]]
    assert found["driver"] == "" and not found["record"]


def test_virtual_functions_from_birth_to_death(host: Host) -> None:
    found = host.call("sriov_life")
    assert found["driver"] == "nvme" and found["made"] and found["groups"] == 3
    assert found["drivers"] == [""] * 3, "no driver of the host may get them first"
    assert found["isolation"] == ["yes"] * 3 and all("flr" in ways for ways in found["resets"])
    assert found["vendor"] == 0x1B36
    assert found["too_many"][0] == "VfCountRefused"
    assert found["problems"] == [] and found["left"] == 0
    assert found["died"] == 9 and found["orphans"] == ["", "vfio-pci"] and found["left_then"] == 0
    assert found["autoprobe"] == "1" and not found["record"]


def test_what_the_host_needs_stays(host: Host) -> None:
    found = host.call("refusals")
    assert found["bridge"][0] == "NotIsolable"
    assert found["not allowed"][0] == "NotAllowed"
    assert found["swap"][0] == "DeviceInUse" and "swaps to it" in found["swap"][1]
    kind, text, nic = found["shared"]
    assert kind == "NotIsolable" and nic in text and "virtio-pci" in text
    assert found["only nic"][0] == "DeviceInUse" and "only NIC" in found["only nic"][1]
    assert found["vanished"][0] == "DeviceVanished"
    assert found["record"] == ["False"]


def test_a_device_vanishes_between_inventory_and_bind(host: Host) -> None:
    kind, _, record = host.call("vanishes")
    assert kind == "DeviceVanished" and record == "False"


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_virtio_crypto_encrypts(host: Host, right: bool) -> None:
    """Every buffer as OpenSSL would; and each is noticed if it were not."""
    found = host.call("encrypt", vector(right))
    assert found["status"] == 0, found
    head, row = head_and_row(found["out"])
    assert row[failed_column(head)] == ("0" if right else "2000"), found["out"]


def head_and_row(out: str) -> tuple[str, list[str]]:
    lines = out.splitlines()
    number = next(n for n, line in enumerate(lines) if "Failed Ops" in line)
    return lines[number], next(line.split() for line in lines[number + 1:] if line.strip())


def failed_column(head: str) -> int:
    """The table's columns have names of several words."""
    names = ["lcore", "Buf", "Burst", "Enqueued", "Dequeued", "Failed Enq", "Failed Deq", "Failed Ops"]
    assert all(name in head for name in names), head
    return names.index("Failed Ops")


def vector(right: bool) -> str:
    """Plain text, and what OpenSSL makes of it, as dpdk-test-crypto-perf reads it."""
    plain = bytes(n & 0xFF for n in range(1024))
    argv = ["openssl", "enc", "-aes-128-cbc", "-nopad", "-K", KEY.hex(), "-iv", IV.hex()]
    cipher = bytearray(subprocess.run(argv, input=plain, capture_output=True, check=True).stdout)
    cipher[0] ^= not right
    words = {"plaintext": plain, "ciphertext": cipher, "cipher_key": KEY, "cipher_iv": IV}
    return "".join(f"{name} =\n{', '.join(f'0x{byte:02x}' for byte in data)}\n" for name, data in words.items())


def test_a_machine_inside_the_machine(host: Host) -> None:
    """The device works in a guest, comes and goes while that runs, and a guest that keeps it is found out."""
    found = host.call("nested")
    assert found["told"] and found["held"][0] == "GroupBusy"
    assert "does not let go" in found["kept"]
    assert found["drivers"] == ["", "virtio-pci"] and not found["record"]
