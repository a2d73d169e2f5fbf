# SPDX-License-Identifier: Apache-2.0
"""What is given out and comes back: VMIDs, and places in edges."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from pipeline.errors import PlanError
from pipeline.policy.model import VM_MAX, Edge, Instance, LayerId, RetiredSlot, Slot, Swarm


def allocate_vm_id(used: Collection[int], last: int) -> int:
    """The lowest free VMID above ``last``, the latest one given out, starting over after VM_MAX - 1: a VMID
    comes back only when all the others have had their turn, so late news of a dead instance meets nobody.
    """
    for step in range(1, VM_MAX):
        vm_id = (max(last, 0) + step - 1) % (VM_MAX - 1) + 1
        if vm_id not in used:
            return vm_id
    raise PlanError(f"all {VM_MAX - 1} VMIDs are in use", hint="drain instances first")


def assign_slots(layers: tuple[LayerId, ...], edges: Iterable[Edge],
                 taken: Collection[Slot]) -> tuple[Slot, ...]:
    """The lowest free place on every edge of these layers. ``taken`` are the places of instances and the
    retired ones. Raises PlanError if an edge has none left.
    """
    slots = []
    for edge in edges:
        side = edge.side(layers)
        if side is None:
            continue
        places = (Slot(edge.name, side, n) for n in range(edge.cap(side)))
        free = (slot for slot in places if slot not in taken)
        found = next(free, None)
        if found is None:
            raise PlanError(f"edge {edge.name} has no free place at its {side.label}",
                            hint="wait until draining instances are gone, or raise max of the layer")
        slots.append(found)
    return tuple(slots)


def taken_slots(swarm: Swarm) -> set[Slot]:
    """Places that nobody may be given: held by an instance, or left by one that a peer still has rings to."""
    return {slot for i in swarm.instances for slot in i.slots} | {retired.slot for retired in swarm.retired}


def retire_slots(swarm: Swarm, instance: Instance) -> tuple[RetiredSlot, ...]:
    """The swarm's retired slots once this instance is gone: it waits for nobody any more, and its own places
    wait for its peers.
    """
    others = [i for i in swarm.instances if i.vm_id != instance.vm_id]
    left = [RetiredSlot(slot, swarm.routing.epoch, frozenset(
        i.vm_id for i in others for s in i.slots if s.edge == slot.edge and s.side is slot.side.other))
        for slot in instance.slots]
    kept = [replace(r, waiting=r.waiting - {instance.vm_id}) for r in swarm.retired]
    return tuple(r for r in (*kept, *left) if r.waiting)


def acknowledge(swarm: Swarm, edge: str, vm_id: int, epoch: int) -> Swarm:
    """The same swarm after this peer has reported that epoch as the latest that it saw on that edge
    (routes_seen): it waits for none of the places that were retired by then.
    """
    retired = (replace(r, waiting=r.waiting - {vm_id}) if r.slot.edge == edge and r.epoch <= epoch else r
               for r in swarm.retired)
    return replace(swarm, retired=tuple(r for r in retired if r.waiting))
