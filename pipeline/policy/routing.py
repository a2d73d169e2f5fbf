# SPDX-License-Identifier: Apache-2.0
"""RoutingTable and Maglev table: who gets new flows, and how many of them."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from heapq import heapify, heapreplace
from itertools import compress, cycle, islice
from math import ceil, isqrt

from pipeline.policy.affinity import worth
from pipeline.policy.model import VM_MAX, LayerId, Route, RoutingTable, VmState, VMStatus

WEIGHT_MAX = 65535
CAPACITY_STEPS = 8    # capacity counts in eighths of the best instance's
LOAD_STEP = 100       # for the order, loads are equal if they are in the same tenth of 0 ... 1000
REFRESH = 1.0         # seconds that a table counts at least, before other weights in it do
MEMBERS = (VmState.ACTIVE, VmState.DRAINING, VmState.READY)


def routing_table(statuses: Iterable[VMStatus], epoch: int) -> RoutingTable:
    """The RoutingTable of these instances, each layer's sorted by load (in tenths), then by what they are worth
    to the layer (tls: by what they have measured, else by their hardware; all: by what CPU time they may have), then
    by VMID.

    The active ones come first and have a weight. Those that are ready or draining follow with weight 0: they
    get no new flow, but their peers must know them. Others are left out.
    """
    members = [s for s in statuses if s.state in MEMBERS]
    layers = sorted({layer for s in members for layer in s.protocol_layers})
    return RoutingTable(epoch, {layer: _routes(layer, [s for s in members if layer in s.protocol_layers])
                                for layer in layers})


def _routes(layer: LayerId, statuses: Sequence[VMStatus]) -> tuple[Route, ...]:
    active = [s for s in statuses if s.state is VmState.ACTIVE]
    best = max((s.available_capacity for s in active), default=0)
    most = max((s.allowance for s in active), default=1.0)
    percent = {s.vm_id: worth(layer, s, active) * s.allowance / most for s in statuses}

    def order(s: VMStatus) -> tuple[int, int, float, int]:
        return MEMBERS.index(s.state), s.load // LOAD_STEP, -percent[s.vm_id], s.vm_id

    return tuple(Route(s.vm_id, weight(s, percent[s.vm_id], best), s.load, s.hardware_affinity, s.state)
                 for s in sorted(statuses, key=order))


def next_routing(old: RoutingTable, new: RoutingTable, now: float) -> RoutingTable:
    """What counts after ``old``: the new table, or still the old one if that is as good.

    A change of the set moves the flows that it must and no others: those that stay keep the weights that they had,
    newcomers get no more than the mean, and what has been measured counts once no table was made for REFRESH seconds.
    """
    if _members(new) != _members(old) or now < old.made_at + REFRESH:
        new = replace(new, routes={layer: _former(dict(old.active(layer)), routes)
                                   for layer, routes in new.routes.items()})
    return replace(new, made_at=now) if is_news(old, new) else old


def _former(old: Mapping[int, int], routes: tuple[Route, ...]) -> tuple[Route, ...]:
    stay = [old[r.vm_id] for r in routes if r.weight and r.vm_id in old]
    mean = max(sum(stay) // len(stay), 1) if stay else WEIGHT_MAX
    return tuple(replace(r, weight=old.get(r.vm_id, min(r.weight, mean))) if r.weight else r for r in routes)


def _members(table: RoutingTable) -> dict[LayerId, frozenset[tuple[int, VmState]]]:
    return {layer: frozenset((r.vm_id, r.state) for r in routes) for layer, routes in table.routes.items()}


def is_news(old: RoutingTable, new: RoutingTable) -> bool:
    """Whether the new table is worth setting: another member or state, or a weight that differs by more than
    a quarter. Smaller differences come and go with every measurement.
    """
    if _members(old) != _members(new):
        return True
    for layer, routes in new.routes.items():
        before = {r.vm_id: r.weight for r in old.of(layer)}
        if any(abs(before[r.vm_id] - r.weight) * 4 > before[r.vm_id] for r in routes):
            return True
    return False


def weight(status: VMStatus, percent: float, best_capacity: int) -> int:
    """Share of new flows, relative to the others of the layer: 0 if it is not active, else 1 ... 65535, what it is
    worth to the layer (percent) times its available capacity in eighths of the best one's. An instance without
    capacity keeps the smallest share: a table without anybody would drop.
    """
    if status.state is not VmState.ACTIVE:
        return 0
    steps = CAPACITY_STEPS
    if best_capacity > 0:
        steps = ceil(CAPACITY_STEPS * max(status.available_capacity, 0) / best_capacity)
    return min(max(round(percent * steps), 1), WEIGHT_MAX)


def maglev_table(entries: Sequence[tuple[int, int]], size: int) -> array[int]:
    """Weighted Maglev: ``size`` slots, each the VMID of one of ``entries`` (vm_id, weight); a flow's
    hash selects its slot. All slots are 0 (nobody) if there are no entries.

    Deterministic, whatever the order of the entries; for the first table, later ones come from ``next_table``. An
    instance's share of the slots is its share of the weights. ``size`` is prime, so that every step width visits every
    slot; 65521 slots for 8 instances take about 30 ms.

    Each instance walks all slots in an order of its own and takes the first free one whenever it has a turn; turns
    come at intervals of 1 / weight. The walks are lazy iterators of C functions (range, ``%``, filter on the bytes of
    free slots), since most of the steps find a slot taken.
    """
    _check(entries, size)
    table = array("H", bytes(2 * size))
    if not entries:
        return table
    free = bytearray(b"\1") * size
    ordered = sorted(entries)
    walks = [filter(free.__getitem__, _walk(vm_id, size)) for vm_id, _ in ordered]
    interval = [1.0 / share for _, share in ordered]
    turns = [(time, i) for i, time in enumerate(interval)]
    heapify(turns)
    for _ in range(size):
        time, i = turns[0]
        slot = next(walks[i])
        free[slot] = 0
        table[slot] = ordered[i][0]
        heapreplace(turns, (time + interval[i], i))
    return table


def next_table(old: Sequence[int], entries: Sequence[tuple[int, int]], lent: bytes = b"") -> array[int]:
    """The table for these entries that changes as few slots of the old one as there can be: nobody's slot goes to
    another who was there before, except what a smaller share must give up. When one of n equals joins or leaves, one
    slot in n changes.

    What is ``lent`` (of ``lent_slots``) is given up first: who replaces one that left gets its slots, and both steps
    together change no slot of those that stayed. Apart from that, what is given up, and who gets what is free, follows
    the slots' order.
    """
    _check(entries, len(old))
    if not entries:
        return array("H", bytes(2 * len(old)))
    table, counts = array("H", old), Counter(old)
    wanted = _slot_counts(sorted(entries), len(old))
    free = _given_up(old, {vm_id: count - wanted.get(vm_id, 0) for vm_id, count in counts.items()}, lent)
    lacking = [(vm_id, count - counts[vm_id]) for vm_id, count in wanted.items() if count > counts[vm_id]]
    # one each in turn, so that what is free does not go to one of them in a block
    slots = iter(sorted(free))
    while lacking:
        rounds = min(count for _, count in lacking)
        turns = cycle([vm_id for vm_id, _ in lacking])
        for slot, vm_id in zip(islice(slots, rounds * len(lacking)), turns, strict=False):
            table[slot] = vm_id
        lacking = [(vm_id, count - rounds) for vm_id, count in lacking if count > rounds]
    return table


def _given_up(old: Sequence[int], excess: dict[int, int], lent: bytes) -> list[int]:
    """Of everybody who has so many slots too many that many: first those that are lent, and the last ones first."""
    left, found = sum(count for count in excess.values() if count > 0), []
    order: Iterable[int] = reversed(range(len(old)))
    if any(lent):
        order = [*compress(range(len(old)), lent)][::-1] + [slot for slot in order if not lent[slot]]
    for slot in order:
        if not left:
            break
        if excess[old[slot]] > 0:
            excess[old[slot]] -= 1
            left -= 1
            found.append(slot)
    return found


def lent_slots(old: Sequence[int], new: Sequence[int], before: bytes = b"") -> bytes:
    """Of each slot of a table made by ``next_table``, 1 if it is its owner's only since the one that had it left, else
    0. ``before``: the same of the old table.
    """
    stay = set(old) & set(new)
    return bytes(was if now == then else then not in stay and now in stay
                 for then, now, was in zip(old, new, before or bytes(len(old)), strict=True))


def _slot_counts(entries: Sequence[tuple[int, int]], size: int) -> dict[int, int]:
    """How many slots each gets: its share, rounded so that all slots are given (largest remainder)."""
    total = sum(share for _, share in entries)
    counts = {vm_id: size * share // total for vm_id, share in entries}
    by_remainder = sorted(entries, key=lambda entry: (-(size * entry[1] % total), entry[0]))
    for vm_id, _ in by_remainder[: size - sum(counts.values())] if entries else ():
        counts[vm_id] += 1
    return counts


def _walk(vm_id: int, size: int) -> Iterable[int]:
    """All slots in this instance's own order: the start and the step width depend on nothing but its VMID."""
    digest = blake2b(vm_id.to_bytes(2, "little"), digest_size=16).digest()
    start = int.from_bytes(digest[:8], "little") % size
    step = int.from_bytes(digest[8:], "little") % (size - 1) + 1
    return map(size.__rmod__, range(start, start + step * size, step))


def _check(entries: Sequence[tuple[int, int]], size: int) -> None:
    if size < 2 or any(size % n == 0 for n in range(2, isqrt(size) + 1)):
        raise ValueError(f"size {size} is not prime")
    if len({vm_id for vm_id, _ in entries}) != len(entries):
        raise ValueError("a vm_id is there twice")
    for vm_id, share in entries:
        if not 0 < vm_id < VM_MAX or not 0 < share <= WEIGHT_MAX:
            raise ValueError(f"vm_id {vm_id} with weight {share} cannot be in a table")


def disruption(old: Sequence[int], new: Sequence[int]) -> float:
    """Share of the slots that differ, 0 to 1: the flows that a table swap would move if nothing remembered
    them.
    """
    if len(old) != len(new):
        raise ValueError(f"tables of {len(old)} and {len(new)} slots cannot be compared")
    return sum(map(int.__ne__, old, new)) / len(old) if old else 0.0
