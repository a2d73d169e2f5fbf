# SPDX-License-Identifier: Apache-2.0
"""An instance that has been broken into writes nonsense into its edge, in a swarm that works, with load beside it. The
test writes all that such a one could, in its place. Whoever meets that shuts it out and says why; nobody loses a
request.
"""

import mmap
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from pipeline._native import ffi, lib
from support.lab import Lab
from system.clients import Load
from system.swarm_rig import Swarm, eventually, swarm_made

from pipeline.host.holder_client import HolderClient

pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.timeout(60)]

ENTRY, COMPLETION = (ffi.sizeof(f"struct sl_{name}") for name in ("request_packet", "completion"))
RING, PEER = ffi.sizeof("struct sl_ring"), ffi.sizeof("struct sl_peer")
EDGE = lib.SL_LAYER_HTTP << 8 | lib.SL_LAYER_APP
DICE = random.Random(4)


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    one = {f"layer.{layer}": {"instances": 1} for layer in ("tcp", "tls", "http")}
    with swarm_made(module_lab, {**one, "layer.app": {"instances": 2}, "swarm": {"drain_timeout": "1s"}}) as made:
        yield made


@dataclass(frozen=True)
class Hostile:
    """What the app instance in the back's place ``slot`` can write, towards the http instance in place 0: ``memory`` is
    the edge's, ``g`` its geometry.
    """

    memory: mmap.mmap
    g: Any
    slot: int
    front_vm: int

    @property
    def peer(self) -> int:
        """Where its line of the peer table begins."""
        return int(self.g.peers_off + (self.g.nb_front + self.slot) * PEER)

    @property
    def vm_id(self) -> int:
        return self.number(self.peer + ffi.offsetof("struct sl_peer", "vm_id")) & 0xFFFF

    def ring(self, *, own: bool) -> int:
        """Where the ring begins whose entries it writes, or that whose completions it does."""
        return int(self.g.rings_off + (2 * self.slot + own) * self.g.ring_len)

    def number(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.memory, at)[0])

    def room(self) -> Iterator[tuple[int, int]]:
        """Where the next entries lie, as many as there is room for, and their laps. An answer that was not taken yet is
        no room: in its place the next lap's entry says that nothing is there, and who swallows answers is not found.
        """
        cap, ring = self.g.ring_cap, self.ring(own=True)
        taken = self.number(ring + ffi.offsetof("struct sl_ring", "cons"))
        for n in range(self.number(ring), taken + cap):
            yield ring + RING + n % cap * ENTRY, 1 + n // cap % 2

    def entries(self, **wrong: int) -> None:
        """The next entries; right but for what is given."""
        incarnation = self.number(self.peer + ffi.offsetof("struct sl_peer", "incarnation"))
        for at, lap in self.room():
            is_ = {"offset": 0, "length": 0, "to": self.front_vm, "epoch": incarnation, "lap": lap,
                   "layer": lib.SL_LAYER_HTTP, "op": lib.SL_OP_DATA, **wrong}
            self.memory[at:at + ENTRY] = struct.pack("<QIIIHHIBBBB", 1, is_["offset"], is_["length"], 1, is_["to"], 0,
                                                     is_["epoch"], is_["lap"], 0, is_["layer"], is_["op"])

    def completions(self) -> None:
        """The next half a ring of them, of more entries than there are."""
        cap, at = self.g.ring_cap, self.ring(own=False) + RING + self.g.ring_cap * ENTRY
        laps = self.memory[at + COMPLETION - 1:at + cap * COMPLETION:COMPLETION]
        first = next((n for n, lap in enumerate(laps) if lap != laps[0]), 0)
        lap = laps[0] if first else 1 + laps[0] % 2
        for n in range(first, first + cap // 2):
            where = at + n % cap * COMPLETION
            self.memory[where:where + COMPLETION] = struct.pack("<IHBB", 7, 9999, 2, lap if n < cap else 3 - lap)

    def noise(self) -> None:
        """Into everything: its line of the peer table, entries, completions, the arena."""
        cap, arena = self.g.ring_cap, self.g.arenas_off + (self.g.nb_front + self.slot) * self.g.arena_len
        for at, length in ((arena, self.g.arena_len), (self.peer, PEER),
                           (self.ring(own=False) + RING + cap * ENTRY, cap * COMPLETION),
                           *((at, ENTRY) for at, _ in self.room())):
            self.memory[at:at + length] = DICE.randbytes(length)


@contextmanager
def hostile(swarm: Swarm, vm_id: int, front_vm: int) -> Iterator[Hostile]:
    """In the place of that app instance, which knows nothing of it."""
    with HolderClient(swarm.run_dir) as holder:
        edge = holder.edge_get(EDGE)
    try:
        with mmap.mmap(edge.fd, edge.len) as memory:
            g = ffi.new("struct sl_region *")
            ffi.memmove(g, memory[:ffi.sizeof("struct sl_region")], ffi.sizeof("struct sl_region"))
            slots = (Hostile(memory, g, slot, front_vm) for slot in range(g.nb_back))
            yield next(each for each in slots if each.vm_id == vm_id)
    finally:
        os.close(edge.fd)


NONSENSE: dict[str, Callable[[Hostile], None]] = {
    "bad_op": lambda h: h.entries(op=77),
    "bad_offset": lambda h: h.entries(offset=0xFFFFFF00, length=64),
    "bad_layer": lambda h: h.entries(to=99),
    "stale_epoch": lambda h: h.entries(epoch=4711),
    "bad_index": lambda h: h.entries(lap=3),
    "bad_completion": Hostile.completions,
    "": Hostile.noise,
}


@pytest.mark.parametrize("why", NONSENSE)
def test_nonsense_on_an_edge(swarm: Swarm, why: str) -> None:
    (front,) = swarm.instances("http")
    bad = swarm.eventually_active("app", 2)[0]["vm_id"]
    words = f"instance {front['vm_id']} has shut out instance {bad}: {why}"
    with Load(swarm.lab, connections=4, method="GET") as load:
        with hostile(swarm, bad, front["vm_id"]) as peer:
            NONSENSE[why](peer)
        eventually(lambda: any(text.startswith(words) for text in swarm.events("quarantine")), words)
        load.goes_on(50)
        swarm.command("drain", str(bad))
        eventually(lambda: bad not in swarm.pids(), "it is replaced")
        load.goes_on(20)
    assert not load.failures
    assert [i["pid"] for i in swarm.instances("http")] == [front["pid"]]
