# SPDX-License-Identifier: Apache-2.0
"""An accelerator under load: it comes, dies, works again and is pulled out. No request notices, the weight follows.

The card is a fake (card.c): one of DPDK's devices of software, in an instance whose processor has no instructions for
AES, so that it is as much faster as a card may be. All else is as it would be with a real one.
"""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ROOT
from support.lab import Lab
from system.clients import Load
from system.swarm_rig import Swarm, eventually, swarm_made

from pipeline.host.processes import BIN_VARIABLE, program

pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.dpdk]

WORKS, DEAD, AWAY = b"w", b"d", b"-"
PROGRAM = "swarmline-instance"
# AES-NI and PCLMULQDQ are taken away from OpenSSL; each instance has a slot, by its VMID
SCRIPT = """#!/bin/sh
for word; do case $word in --vm-id=*) slot=${{word#*=}};; esac; done
export OPENSSL_ia32cap='~0x200000200000000' LD_PRELOAD={card} SWARMLINE_TEST_CARD={slots}/$slot
exec {program}-dpdk --accelerator=crypto_aesni_gcm "$@"
"""


@dataclass(frozen=True)
class Look:
    """What a tls instance works with, and its share of new connections by the RoutingTable of that epoch."""

    kind: str
    fallbacks: int
    epoch: int
    share: float


@dataclass(frozen=True)
class Rig:
    swarm: Swarm
    slots: Path

    def card(self, vm_id: int, state: bytes) -> None:
        with (self.slots / str(vm_id)).open("r+b") as slot:
            slot.write(state)

    def look(self, vm_id: int) -> Look:
        status = self.swarm.status()
        table = status["routing_table"]
        weights = {r["vm_id"]: r["weight"] for r in table["layers"]["tls"]}
        (crypto,) = (i["crypto"] for i in status["instances"] if i["vm_id"] == vm_id)
        return Look(crypto["kind"], crypto["fallbacks"], table["epoch"], weights[vm_id] / sum(weights.values()))

    def follows(self, vm_id: int, state: bytes, kind: str) -> None:
        """The card is in another state now: the instance says what it works with, and the next table says what that is
        worth.
        """
        def moved(now: Look) -> bool:
            return now.share - former.share > 0.05 if kind == "device" else former.share - now.share > 0.05

        former = self.look(vm_id)
        self.card(vm_id, state)
        told = eventually(lambda: (now := self.look(vm_id)).kind == kind and now, f"instance {vm_id} works with {kind}")
        if not moved(told):
            now = eventually(lambda: (now := self.look(vm_id)).epoch > told.epoch and now, "another table")
            assert moved(now), (former, told, now)


@pytest.fixture
def rig(module_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A swarm of which every instance has a slot for a card."""
    tmp_path.chmod(0o755)
    card, slots = tmp_path / "card.so", tmp_path / "slots"
    flags = subprocess.run(["pkg-config", "--cflags", "libdpdk"], capture_output=True, text=True, check=True).stdout
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE", *flags.split(),
                    str(ROOT / "tests/system/card.c"), "-o", str(card)], check=True)
    slots.mkdir()
    for vm_id in range(64):
        (slots / str(vm_id)).write_bytes(AWAY)
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / PROGRAM
    script.write_text(SCRIPT.format(card=card, slots=slots, program=program(PROGRAM)))
    script.chmod(0o755)
    monkeypatch.setenv(BIN_VARIABLE, str(folder))
    with swarm_made(module_lab, {"layer.tls": {"instances": 2}}) as swarm:
        yield Rig(swarm, slots)


def test_the_weight_follows_the_card_and_no_request_fails(rig: Rig) -> None:
    first, other = (i["vm_id"] for i in rig.swarm.eventually_active("tls", 2))
    assert rig.look(first).kind == rig.look(other).kind == "software"
    with Load(rig.swarm.lab, connections=4) as before:
        rig.follows(first, WORKS, "device")
        with Load(rig.swarm.lab, connections=12) as load:      # most of them by the card
            rig.follows(first, DEAD, "software")
            rig.follows(first, WORKS, "device")
            load.goes_on()
            rig.follows(first, AWAY, "software")
            load.goes_on()
            rig.follows(first, WORKS, "device")
        before.goes_on()
    assert not before.failures + load.failures
    assert (before.reopened, load.reopened) == (before.connections, load.connections), "one was ended"
    assert rig.look(first).fallbacks == 2, "connections used the card when it went"
    assert rig.look(other).kind == "software"
