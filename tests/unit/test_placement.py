# SPDX-License-Identifier: Apache-2.0
"""Placement on machines that this one is not, and what it says of it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support import ROOT
from support.machines import grow
from typer.testing import CliRunner

from pipeline.cli.main import cli
from pipeline.host.hardware import inventory
from pipeline.policy import placement
from pipeline.policy.affinity import ACCELERATORS, Hardware
from pipeline.policy.hardware import Machine
from pipeline.policy.model import Driver, Layer, LayerId
from pipeline.policy.placement import Placement, Wishes, place, seat

MACHINES = Path(__file__).parent / "machines"
EDGES = {(LayerId.TCP, LayerId.TLS): 100, (LayerId.TLS, LayerId.HTTP): 100, (LayerId.HTTP, LayerId.APP): 100}
NEAR, FAR, EMPTY = "0000:3d:00.0", "0000:da:00.0", "0000:3f:00.0"


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Machine]:
    found = {}
    for file in MACHINES.glob("*.txt"):
        folder = tmp_path_factory.mktemp(file.stem)
        found[file.stem] = inventory(grow(file, folder), folder / "proc")
    return found


@pytest.fixture
def xeon(machines: dict[str, Machine]) -> Machine:
    return machines["xeon-qat"]


def layers(tls: int = 2, wants: int = 0) -> tuple[Layer, ...]:
    return (Layer(LayerId.TCP, 1), Layer(LayerId.TLS, tls, driver=Driver.QEMU, wants=wants),
            Layer(LayerId.HTTP, 2), Layer(LayerId.APP, 2))


def wishes(tls: int = 2, wants: int = ACCELERATORS, allow: tuple[str, ...] = (NEAR, FAR), vfs: int = 0,
           interface: str = "eno1") -> Wishes:
    return Wishes(layers(tls, wants), EDGES, interface, allow, vfs)


def of(placed: Placement, layer: LayerId) -> list[placement.Seat]:
    return [s for s in placed.seats if s.layer is layer]


def test_everything_is_at_home_if_it_fits(xeon: Machine) -> None:
    placed = place(xeon, wishes(wants=0))
    assert placed.home == 0 and "eno1" in placed.why_home
    assert {m.node for m in placed.memories} == {0} and {s.node for s in placed.seats} == {0}
    cores = [s.cpus for s in (placed.router, *placed.seats)]
    assert len(set(cores)) == len(cores) == 8          # a core each, and no two threads of one
    assert all(cpu < 8 for (cpu,) in cores)
    assert placed.router.cpus[0] in xeon.isolated_cpus and "isolcpus" in placed.router.why
    assert placed.problems == ()


def test_tls_gets_the_accelerators_of_its_node_first(xeon: Machine) -> None:
    placed = place(xeon, wishes(tls=3))
    assert [s.accelerator for s in of(placed, LayerId.TLS)] == ["0000:3d:01.0", "0000:3d:01.1", "0000:3d:01.2"]
    assert all("C62x VF is free on node 0" in s.why for s in of(placed, LayerId.TLS))
    assert all(s.accelerator == "" for s in placed.seats if s.layer is not LayerId.TLS)


def test_an_accelerator_elsewhere_takes_its_instance_there(xeon: Machine) -> None:
    placed = place(xeon, wishes(tls=1, allow=(FAR,)))
    (tls,) = of(placed, LayerId.TLS)
    assert tls.accelerator == "0000:da:01.0" and tls.node == 1 and tls.cpus[0] in range(8, 16)
    assert placed.problems == ("tls 1 is on node 1, the NIC on node 0",)


def test_a_machine_without_a_known_nic_is_placed_round_its_accelerators(xeon: Machine) -> None:
    placed = place(xeon, wishes(allow=(FAR,), interface="sl-nic0"))
    assert placed.home == 1 and "nobody says" in placed.why_home


def test_vfs_to_be_made_are_counted(xeon: Machine) -> None:
    placed = place(xeon, wishes(tls=3, allow=(EMPTY,), vfs=2))
    assert [s.accelerator for s in of(placed, LayerId.TLS)] == [f"{EMPTY} VF 0", f"{EMPTY} VF 1", ""]
    assert any("1 of 3 tls instances get no accelerator: all 2 accelerators are taken" in p for p in placed.problems)


def test_only_what_is_allowed_and_wanted(xeon: Machine) -> None:
    assert all(not s.accelerator for s in place(xeon, wishes(allow=())).seats)
    assert all(not s.accelerator for s in place(xeon, wishes(wants=Hardware.CRYPTO)).seats)
    assert place(xeon, wishes(allow=("0000:99:00.0",))).problems[-1] == (
        "[hardware] allow names 0000:99:00.0, which is not there")


def test_a_process_gets_none(xeon: Machine) -> None:
    asked = wishes()
    asked = replace(asked, layers=tuple(replace(layer, driver=Driver.PROCESS) for layer in asked.layers))
    assert "a process can not be given a device" in of(place(xeon, asked), LayerId.TLS)[0].why


@pytest.mark.parametrize("name", ["epyc-no-iommu", "shared-group"])
def test_what_can_not_be_isolated_is_not_used(machines: dict[str, Machine], name: str) -> None:
    machine = machines[name]
    cards = tuple(f.address for f in machine.functions if f.affinity & ACCELERATORS)
    placed = place(machine, wishes(allow=cards, interface="enp65s0f0np0"))
    assert cards and all(not s.accelerator for s in placed.seats)
    assert any("no accelerator may be used" in problem for problem in placed.problems)


def test_scale_out_takes_the_next_free_one_and_a_death_frees_it(xeon: Machine) -> None:
    asked = wishes(tls=2)
    placed = place(xeon, asked)
    tls = asked.layers[1]
    grown = seat(xeon, asked, placed, tls)
    assert grown.seats[-1].name == "tls 3" and grown.seats[-1].accelerator == "0000:3d:01.2"
    used = {s.cpus for s in (placed.router, *placed.seats)}
    assert grown.seats[-1].cpus not in used
    left = placement.without(grown, of(grown, LayerId.TLS)[0])
    assert seat(xeon, asked, left, tls).seats[-1].accelerator == "0000:3d:01.0"


def test_cores_run_out(machines: dict[str, Machine]) -> None:
    placed = place(machines["shared-group"], Wishes(layers(tls=4), EDGES, "enp2s0"))
    (shared,) = (p for p in placed.problems if "loops for 8 cores" in p)
    assert shared.startswith("10 loops for 8 cores: core of CPU")
    assert "shares a core" in placed.seats[-1].why or "shares a core" in "".join(s.why for s in placed.seats)


def test_full_nodes_overflow_to_the_nearest(machines: dict[str, Machine]) -> None:
    epyc = machines["epyc-no-iommu"]
    placed = place(epyc, Wishes(layers(), EDGES, "enp65s0f0np0"))
    assert placed.home == 1 and {m.node for m in placed.memories} == {1}
    assert sum(s.node == 1 for s in (placed.router, *placed.seats)) == 4        # its cores
    assert all("as node 1 has none (distance 12)" in s.why for s in placed.seats if s.node != 1)


def test_hugepages_that_are_missing_are_named(xeon: Machine) -> None:
    huge = dict.fromkeys(EDGES, 32_000)
    placed = place(xeon, replace(wishes(wants=0), edges=huge))
    assert [m.node for m in placed.memories] == [0, 1, None]
    assert "room for 16000 at home, for 48000 here at distance 21" in placed.memories[1].why
    assert any(p.startswith("edge http-app: no node has memory for so many") for p in placed.problems)
    guests = tuple(replace(layer, driver=Driver.QEMU, memory=8 << 30) for layer in layers())
    placed = place(xeon, replace(wishes(wants=0), layers=guests))
    (problem,) = (p for p in placed.problems if p.startswith("node 0: 28972 hugepages are wanted"))
    assert problem.endswith("4000 are free, and in its memory is room for 11000 more")
    assert placement.pages_by_node(placed.seats) == {0: 28672} and placement.pages_by_node(placed.memories) == {0: 300}


def test_the_decision_is_the_same_once_the_pages_are_made(xeon: Machine) -> None:
    """`up` decides before, the manager after, another manager when they are in use."""
    asked = replace(wishes(wants=0, interface="sl-nic0"), edges=dict.fromkeys(EDGES, 3000))
    placed = place(xeon, asked)
    assert placed.home == 0 and {m.node for m in placed.memories} == {0}
    for pages in (0, 9000):
        nodes = (replace(xeon.nodes[0], free_hugepages=pages, free_memory=0), xeon.nodes[1])
        later = place(replace(xeon, nodes=nodes), asked)
        assert (later.memories, later.seats) == (placed.memories, placed.seats)


def test_configured_cpus_count_before_everything(xeon: Machine) -> None:
    asked = wishes(wants=0)
    pinned = tuple(replace(layer, cpus=(9,)) if layer.id is LayerId.APP else layer for layer in asked.layers)
    placed = place(xeon, replace(asked, layers=pinned))
    assert {s.cpus for s in of(placed, LayerId.APP)} == {(9,)} and of(placed, LayerId.APP)[0].node == 1
    assert any("core of CPU 9: app 1, app 2" in p for p in placed.problems)
    taken = tuple(replace(layer, cpus=(2,)) if layer.id is LayerId.APP else layer for layer in asked.layers)
    placed = place(xeon, replace(asked, layers=taken))
    assert placed.router.cpus == (3,), "the core of another is not given to the router"
    missing = tuple(replace(layer, cpus=(99,)) if layer.id is LayerId.APP else layer for layer in asked.layers)
    assert any("CPU 99, which does not exist" in p for p in place(xeon, replace(asked, layers=missing)).problems)


def test_several_cpus_are_shared_knowingly(xeon: Machine) -> None:
    def problems(**cpus: tuple[int, ...]) -> list[str]:
        asked = wishes(tls=3, wants=0)
        mine = tuple(replace(layer, cpus=cpus.get(layer.id.label, ())) for layer in asked.layers)
        return [p for p in place(xeon, replace(asked, layers=mine)).problems if "CPU" in p]

    assert problems(tls=(2, 3, 4)) == []
    assert problems(tls=(2, 18)) == ["3 tls instances for 1 cores: CPU 2, 18"]
    assert problems(tls=(2, 3, 4), http=(3, 5)) == ["tls may run on the cores of http 1, http 2: CPU 2, 3, 4"]
    assert problems(tls=(2, 3, 4), tcp=(20,)) == ["tls may run on the cores of tcp 1: CPU 2, 3, 4"]


def test_cores_of_other_swarms_are_the_last_choice(xeon: Machine) -> None:
    asked = wishes(wants=0)
    first = place(xeon, asked)
    taken = {cpu: "/run/first" for s in (first.router, *first.seats) for cpu in s.cpus}
    second = place(replace(xeon, taken=taken), asked)
    assert not taken.keys() & {cpu for s in (second.router, *second.seats) for cpu in s.cpus}
    everything = place(replace(xeon, taken=dict.fromkeys(range(32), "/run/first")), asked)
    (shared,) = (p for p in everything.problems if "loops for 16 cores" in p)
    assert "core of CPU 2: router, the swarm in /run/first" in shared
    wide = tuple(replace(layer, cpus=(2, 3, 9)) if layer.id is LayerId.TLS else layer for layer in asked.layers)
    problems = place(replace(xeon, taken={9: "/run/first", 10: "/run/third"}), replace(asked, layers=wide)).problems
    assert problems == ("tls may run on the cores of the swarm in /run/first: CPU 2, 3, 9",)


def test_the_command(tmp_path: Path) -> None:
    sysfs = grow(MACHINES / "xeon-qat.txt", tmp_path)
    file = tmp_path / "swarm.toml"
    text = (ROOT / "examples/https.toml").read_text().replace('interface = "sl-nic0"', 'interface = "eno1"')
    site = f'root = "{ROOT}/examples/site"'
    text = text.replace('root = "site"', site).replace("[layer.tls]", '[layer.tls]\nwants = "crypto"\ndriver = "qemu"')
    file.write_text(f'[hardware]\nallow = ["{NEAR}"]\n\n{text}')
    runner = CliRunner()
    plain = runner.invoke(cli, ["place", str(file), "--sysfs", str(sysfs)])
    assert plain.exit_code == 0, plain.output
    explained = runner.invoke(cli, ["place", "--explain", str(file), "--sysfs", str(sysfs)]).stdout
    assert "home      node 0: eno1 (0000:18:00.0) is there" in explained
    assert "C62x VF is free on node 0" in explained and "is free" not in plain.stdout
    value = json.loads(runner.invoke(cli, ["place", str(file), "--sysfs", str(sysfs), "--json"]).stdout)
    assert [s["accelerator"] for s in value["seats"] if s["name"] == "tls 1"] == ["0000:3d:01.0"]
