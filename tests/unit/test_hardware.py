# SPDX-License-Identifier: Apache-2.0
"""The inventory: other machines from their sysfs, this one from its own, and the table of accelerators."""

import json
import os
from pathlib import Path

import pytest
from support.machines import grow
from typer.testing import CliRunner

from pipeline.cli.main import cli
from pipeline.errors import HardwareError
from pipeline.host.hardware import accelerator_table, cpu_list, inventory
from pipeline.policy.affinity import Hardware
from pipeline.policy.hardware import Kind, Machine

MACHINES = Path(__file__).parent / "machines"


@pytest.fixture
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Machine:
    return inventory(grow(MACHINES / f"{request.param}.txt", tmp_path), tmp_path / "proc")


def of(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("machine", [name], indirect=True)


# ---- two sockets, QuickAssist with VFs

@of("xeon-qat")
def test_two_sockets_are_two_nodes(machine: Machine) -> None:
    assert [(n.number, n.cpus[:2], n.hugepages, n.free_hugepages, n.distances) for n in machine.nodes] == [
        (0, (0, 1), 4096, 4000, {0: 10, 1: 21}), (1, (8, 9), 1024, 1024, {0: 21, 1: 10})]
    assert machine.nodes[0].memory == 98304000 << 10
    assert machine.nodes[0].free_memory == (20480000 + 2 * 1024000) << 10, "files that are cached can go"
    assert machine.distance(0, 1) == 21
    assert len(machine.cpus) == 32 and len({c.siblings for c in machine.cpus}) == 16
    assert {(c.node, c.package) for c in machine.cpus} == {(0, 0), (1, 1)}
    assert machine.cpus[17].siblings == (1, 17)
    assert machine.isolated_cpus == (2, 3, 4, 5, 6, 7)
    assert [(c.level, c.length, len(c.cpus)) for c in machine.caches if c.level == 3] == [(3, 25344 << 10, 16)] * 2
    assert machine.cpu_affinity == Hardware.AES_NI | Hardware.AVX512
    assert machine.default_routes == ("eno1",)


@of("xeon-qat")
def test_quick_assist_and_its_vfs(machine: Machine) -> None:
    assert machine.iommu and machine.vfio
    card, vf = machine.function("0000:3d:00.0"), machine.function("0000:3d:02.7")
    assert card and vf and card.model and vf.model
    assert card.what == "Intel QAT 1.x C62x" and card.driver == "c6xx" and card.total_vfs == 16
    assert card.vfs[0] == "0000:3d:01.0" and card.vfs[-1] == "0000:3d:02.7" and len(card.vfs) == 16
    assert vf.physical == card.address and vf.kind is Kind.ACCELERATOR and vf.affinity is Hardware.QAT
    assert vf.driver == "" and vf.group == 135 and vf.node == 0 and vf.resets == ("flr",)
    assert "public-key" in vf.model.does and vf.model.dpdk == "crypto_qat"
    assert machine.isolation(vf) == "yes"
    assert {f.node for f in machine.functions if f.affinity is Hardware.QAT and f.physical} == {0, 1}


@of("xeon-qat")
def test_a_nic_and_a_bridge(machine: Machine) -> None:
    nic, bridge = machine.function("0000:18:00.1"), machine.function("0000:17:00.0")
    assert nic and bridge
    assert nic.kind is Kind.NIC and nic.interfaces == ("eno2",) and nic.affinity is Hardware.NONE
    assert bridge.kind is Kind.BRIDGE and machine.isolation(bridge) == "stays with the host"


# ---- no IOMMU

@of("epyc-no-iommu")
def test_without_an_iommu_nothing_can_be_given_away(machine: Machine) -> None:
    assert not machine.iommu and not machine.vfio
    card = machine.function("0000:63:00.1")
    assert card and card.model and card.affinity is Hardware.CRYPTO and "TPM" in card.model.caution
    assert machine.isolation(card) == "no: no IOMMU"
    nic = machine.function("0000:41:00.0")
    assert nic and nic.model and nic.kind is Kind.NIC and nic.model.does == ("record",) and nic.what.endswith("6 Dx")
    assert [n.number for n in machine.nodes] == [0, 1, 2, 3] and machine.nodes[1].free_hugepages == 512
    assert machine.cpus[16].siblings == (0, 16)
    assert machine.cpu_affinity == Hardware.AES_NI | Hardware.SHA_NI
    assert machine.default_routes == ("enp65s0f0np0",)


# ---- a shared group

@of("shared-group")
def test_a_shared_group_names_who_shares_it(machine: Machine) -> None:
    card, nic = machine.function("0000:01:00.0"), machine.function("0000:02:00.0")
    assert card and nic
    assert machine.companions(card) == (nic,)
    assert [f.address for f in machine.ports(card)] == ["0000:00:01.0", "0000:00:01.1"]
    assert machine.isolation(card) == "only with 0000:02:00.0"
    assert machine.obstacles(card) == (nic,)
    assert machine.obstacles(card, ["0000:02:00.0"]) == ()
    assert card.node is None
    assert "disable_denylist" in (card.model.caution if card.model else "")


@of("shared-group")
def test_without_numa_there_is_one_node(machine: Machine) -> None:
    (node,) = machine.nodes
    assert (node.number, node.cpus, node.hugepages, node.free_hugepages) == (0, tuple(range(8)), 64, 60)
    assert node.memory == 32768000 << 10


# ---- this machine

def test_this_machine() -> None:
    machine = inventory()
    assert set(os.sched_getaffinity(0)) <= {c.number for c in machine.cpus}
    assert sorted(cpu for node in machine.nodes for cpu in node.cpus) == [c.number for c in machine.cpus]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert all(node.memory > 0 for node in machine.nodes) and sum(n.memory for n in machine.nodes) < 2 * memory
    folder = Path("/sys/bus/pci/devices")
    assert {f.address for f in machine.functions} == {p.name for p in folder.iterdir()} if folder.is_dir() else True
    for f in machine.functions:
        assert f.driver == "" or (Path("/sys/bus/pci/drivers") / f.driver / f.address).exists()


# ---- the command

@pytest.mark.parametrize("name", ["xeon-qat", "epyc-no-iommu", "shared-group"])
def test_the_command(name: str, tmp_path: Path) -> None:
    sysfs = grow(MACHINES / f"{name}.txt", tmp_path)
    done = CliRunner().invoke(cli, ["hardware", "--sysfs", str(sysfs), "--json"])
    assert done.exit_code == 0, done.output
    value = json.loads(done.stdout)
    assert {n["number"] for n in value["nodes"]} == {n.number for n in inventory(sysfs, tmp_path / "proc").nodes}
    shown = CliRunner().invoke(cli, ["hardware", "--sysfs", str(sysfs)])
    assert shown.exit_code == 0
    for f in value["functions"]:
        # VFs that are alike are one row
        first_vf = not f["physical"] or f["address"].endswith("01.0")
        assert (f["address"] in shown.stdout) >= (f["kind"] in ("accelerator", "nic") and first_vf)


def test_what_the_command_says_of_a_vf(tmp_path: Path) -> None:
    sysfs = grow(MACHINES / "shared-group.txt", tmp_path)
    value = json.loads(CliRunner().invoke(cli, ["hardware", "--sysfs", str(sysfs), "--json"]).stdout)
    card = next(f for f in value["functions"] if f["address"] == "0000:01:00.0")
    assert card["hardware_affinity"] == ["qat"] and card["isolable"] is False
    assert card["group_members"] == ["0000:02:00.0"]
    assert card["model"]["affinity"] == ["qat"] and card["class_code"] == "0b4000"


def test_no_sysfs(tmp_path: Path) -> None:
    with pytest.raises(HardwareError, match="is not a sysfs"):
        inventory(tmp_path)


# ---- the table

def test_the_table_names_each_function_once() -> None:
    rows = list(accelerator_table())
    assert len({(vendor, device) for vendor, device, _ in rows}) == len(rows)
    assert all(len(vendor) == 4 and len(device) == 4 and device == device.lower() for vendor, device, _ in rows)
    words = {"cipher", "public-key", "hash", "compress", "record"}
    assert all(set(model.does) <= words for _, _, model in rows)


@pytest.mark.parametrize(("vendor", "device", "family", "affinity"), [
    ("8086", "4941", "Intel QAT 2.0", Hardware.QAT), ("8086", "0443", "Intel QAT 1.x", Hardware.QAT),
    ("8086", "4947", "Intel QAT 2.0", Hardware.QAT), ("1af4", "1054", "virtio-crypto", Hardware.CRYPTO),
    ("177d", "a041", "Marvell CPT", Hardware.CRYPTO), ("1425", "640d", "Chelsio T6", Hardware.NONE),
    ("15b3", "a2dc", "NVIDIA BlueField", Hardware.NONE)])
def test_the_table(vendor: str, device: str, family: str, affinity: Hardware) -> None:
    model = accelerator_table().model(vendor, device)
    assert model and model.family == family and model.affinity == affinity


def test_what_is_not_in_the_table() -> None:
    assert accelerator_table().model("8086", "158b") is None
    assert accelerator_table().model("1425", "5401") is None


def test_cpu_lists() -> None:
    assert cpu_list("0-2,8,10-11") == (0, 1, 2, 8, 10, 11)
    assert cpu_list("") == ()
