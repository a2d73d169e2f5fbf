# SPDX-License-Identifier: Apache-2.0
"""Where everything goes on a machine: cores, memory, accelerators; each decision with its reason.

Packets touch everything on their way, so everything wants to be on the NIC's NUMA node, its *home*. What does not fit
there goes to the nearest node that has room. An instance with an accelerator goes where that is.

``place`` puts a whole swarm; ``seat`` one more instance beside what is placed, which is how a layer grows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pipeline.policy.affinity import ACCELERATORS, Hardware
from pipeline.policy.hardware import Function, Machine, permitted
from pipeline.policy.model import Driver, Layer, LayerId

PAGE_LEN = 2 << 20


@dataclass(frozen=True)
class Seat:
    """Of one instance, or of the router. ``cpus``: where it may run. ``why``: in words."""

    name: str
    layer: LayerId
    node: int
    cpus: tuple[int, ...]
    accelerator: str = ""      # its PCI address; "0000:3d:00.0 VF 2" is still to be made
    pages: int = 0             # hugepages of a guest's memory
    why: str = ""


@dataclass(frozen=True)
class Memory:
    """Of one edge. ``node`` None: no node has so much memory."""

    name: str
    pages: int
    node: int | None
    why: str


@dataclass(frozen=True)
class Wishes:
    """What a configuration asks of a machine."""

    layers: tuple[Layer, ...]
    edges: Mapping[tuple[LayerId, LayerId], int]     # hugepages of each, by its layers
    interface: str = ""
    allow: tuple[str, ...] = ()
    vfs: int = 0                                     # to be made on each allowed function that has none


@dataclass(frozen=True)
class Placement:
    """A whole swarm on a machine. ``problems``: what the machine has too little of, or has at the wrong place."""

    home: int
    why_home: str
    router: Seat
    memories: tuple[Memory, ...]
    seats: tuple[Seat, ...]
    problems: tuple[str, ...] = ()

    def lines(self, *, explain: bool = True) -> list[str]:
        """One for each decision, with its reason or without."""
        def line(what: str, why: str) -> str:
            return f"{what}: {why}" if explain else what

        lines = [line(f"home      node {self.home}", self.why_home)]
        lines += [line(f"{m.name:9} {_where(m.node)}, {m.pages} hugepages", m.why) for m in self.memories]
        for s in (self.router, *self.seats):
            device = f", {s.accelerator}" if s.accelerator else ""
            pages = f", {s.pages} hugepages" if s.pages else ""
            lines.append(line(f"{s.name:9} node {s.node}, CPU {', '.join(map(str, s.cpus))}{pages}{device}", s.why))
        return lines + [f"problem: {problem}" for problem in self.problems]


def place(machine: Machine, wishes: Wishes) -> Placement:
    """Everything, from the NIC inwards; those that want an accelerator choose their places before the others."""
    home, why = _home(machine, wishes)
    router = _router(machine, home, wishes)
    placement = Placement(home, why, router, _memories(machine, home, wishes), ())
    for layer in sorted(wishes.layers, key=lambda layer: not layer.wants):
        for _ in range(layer.instances):
            placement = seat(machine, wishes, placement, layer)
    order = {layer.id: n for n, layer in enumerate(wishes.layers)}
    seats = tuple(sorted(placement.seats, key=lambda s: order[s.layer]))
    return replace(placement, seats=seats, problems=_problems(machine, wishes, replace(placement, seats=seats)))


def seat(machine: Machine, wishes: Wishes, placement: Placement, layer: Layer) -> Placement:
    """The placement with one more instance of this layer."""
    number = sum(s.layer is layer.id for s in placement.seats) + 1
    near = _edge_node(placement, layer.id)
    device, why = _accelerator(machine, wishes, placement, layer, near)
    wanted = device[1] if device and device[1] is not None else near
    cpus, node, why_cpu = _cpus(machine, wishes, placement, layer, wanted)
    pages = layer.memory // PAGE_LEN if layer.driver is Driver.QEMU else 0
    new = Seat(f"{layer.id.label} {number}", layer.id, node, cpus, device[0] if device else "", pages,
               "; ".join(filter(None, (why, why_cpu))))
    return replace(placement, seats=(*placement.seats, new))


def pages_by_node(parts: Iterable[Memory | Seat]) -> dict[int, int]:
    """The hugepages that edges and guests want of each node; not those of what is placed on none."""
    wanted = Counter[int]()
    for part in parts:
        if part.node is not None and part.pages:
            wanted[part.node] += part.pages
    return dict(wanted)


def equip(machine: Machine, wishes: Wishes, placement: Placement, old: Seat, layer: Layer) -> Seat:
    """The seat with the accelerator that it should have now: the one that it has if it still may, else the nearest
    that is free, or none.
    """
    wanted = {address for address, _, what, _ in _accelerators(machine, wishes) if what & layer.wants}
    if old.accelerator in wanted:
        return old
    device, why = _accelerator(machine, wishes, without(placement, old), layer, old.node)
    return replace(old, accelerator=device[0] if device else "", why=why or old.why)


def without(placement: Placement, gone: Seat) -> Placement:
    """The placement after this instance left: its core and its accelerator are free."""
    return replace(placement, seats=tuple(s for s in placement.seats if s is not gone))


# ---- where to begin

def _home(machine: Machine, wishes: Wishes) -> tuple[int, str]:
    first = machine.nodes[0].number
    if len(machine.nodes) == 1:
        return first, "there is no other"
    nic = next((f for f in machine.functions if wishes.interface in (f.address, *f.interfaces)), None)
    if nic and nic.node is not None:
        return nic.node, f"{wishes.interface} ({nic.address}) is there"
    usable = Counter(f.node for f in _usable(machine, wishes) if f.node is not None)
    if usable and any(layer.wants for layer in wishes.layers):
        best = max(sorted(usable), key=lambda node: usable[node])
        return best, f"the accelerators are there; on which node {wishes.interface or 'the NIC'} is, nobody says"
    best = max(machine.nodes, key=lambda node: (len(node.cpus), -node.number)).number
    return best, f"no node has more CPUs; on which node {wishes.interface or 'the NIC'} is, nobody says"


def _router(machine: Machine, home: int, wishes: Wishes) -> Seat:
    empty = Placement(home, "", Seat("", LayerId.NONE, home, ()), (), ())
    cpus, node, why = _cpus(machine, wishes, empty, None, home)
    return Seat("router", LayerId.NONE, node, cpus, why=f"it polls {wishes.interface or 'the NIC'}; {why}")


def _memories(machine: Machine, home: int, wishes: Wishes) -> tuple[Memory, ...]:
    """A node's room is its memory, not what is in its pool now: `up` makes the pages. So the decision is the same
    before and after that, and for a manager that comes later.
    """
    room = {node.number: node.memory // PAGE_LEN for node in machine.nodes}
    placed = []
    for (front, back), pages in wishes.edges.items():
        node = next((n for n in _by_distance(machine, home) if room[n] >= pages), None)
        if node is None:
            why = f"no node has memory for so many (the most: {max(room.values(), default=0)})"
        else:
            why = f"there is room for {room[node]}" if node == home else (
                f"room for {room[home]} at home, for {room[node]} here at distance {machine.distance(home, node)}")
            room[node] -= pages
        placed.append(Memory(f"{front.label}-{back.label}", pages, node, why))
    return tuple(placed)


def _edge_node(placement: Placement, layer: LayerId) -> int:
    """Of the memory between this layer and the one before it, else behind it."""
    for end in (1, 0):
        for memory in placement.memories:
            if memory.name.split("-")[end] == layer.label and memory.node is not None:
                return memory.node
    return placement.home


# ---- cores

def _cpus(machine: Machine, wishes: Wishes, placement: Placement, layer: Layer | None,
          near: int) -> tuple[tuple[int, ...], int, str]:
    """A core that nobody has, no layer is configured for and no other swarm uses, as near as can be; else the least
    used one there.
    """
    if layer and layer.cpus:
        there = [c for c in machine.cpus if c.number in layer.cpus]
        return layer.cpus, there[0].node if there else near, "its CPUs are configured"
    used = Counter(cpu for s in (placement.router, *placement.seats) for cpu in s.cpus)
    used.update(cpu for other in wishes.layers for cpu in other.cpus)
    used.update(machine.taken.keys())
    cores = {cpu.siblings: cpu for cpu in reversed(machine.cpus)}      # one thread of each: its first
    spared = set(machine.isolated_cpus)

    def taken(cpu: int) -> int:
        siblings = next(c.siblings for c in machine.cpus if c.number == cpu)
        return sum(used[sibling] for sibling in siblings)

    def rank(core: tuple[int, ...]) -> tuple[int, int, bool, int]:
        cpu = cores[core]
        return taken(cpu.number), machine.distance(near, cpu.node), cpu.number not in spared, cpu.number

    best = cores[min(cores, key=rank)]
    where = f"on node {best.node}" if best.node == near else (
        f"on node {best.node}, as node {near} has none (distance {machine.distance(near, best.node)})")
    if taken(best.number) == 0:
        isolated = ", kept free of others by isolcpus" if best.number in spared else ""
        return (best.number,), best.node, f"a core of its own {where}{isolated}"
    near_cores = [core for core in cores if cores[core].node == near] or list(cores)
    least = cores[min(near_cores, key=rank)]       # all are taken: then rather near than evenly
    return (least.number,), least.node, f"shares a core on node {least.node}: all {len(cores)} are taken"


# ---- accelerators

def _usable(machine: Machine, wishes: Wishes) -> list[Function]:
    """Functions that may be given away and can be, or whose VFs can be."""
    return [f for f in machine.functions if f.affinity & ACCELERATORS and permitted(f, wishes.allow)
            and f.group is not None and not machine.obstacles(f, wishes.allow)]


def _accelerators(machine: Machine, wishes: Wishes) -> list[tuple[str, int | None, Hardware, str]]:
    """(address, node, what it is, model): VFs that are there, those still to be made, and whole functions."""
    found: list[tuple[str, int | None, Hardware, str]] = []
    for f in _usable(machine, wishes):
        if f.vfs:
            continue                     # they stand in the list themselves
        if f.total_vfs and wishes.vfs:
            found += [(f"{f.address} VF {n}", f.node, f.affinity, f.what) for n in range(min(wishes.vfs, f.total_vfs))]
        else:
            found.append((f.address, f.node, f.affinity, f.what))
    return found


def _accelerator(machine: Machine, wishes: Wishes, placement: Placement, layer: Layer,
                 near: int) -> tuple[tuple[str, int | None] | None, str]:
    """The nearest free one that the layer wants, and why it, or none."""
    if not layer.wants:
        return None, ""
    if layer.driver is not Driver.QEMU:
        return None, "a process can not be given a device"
    taken = {s.accelerator for s in placement.seats}
    wanted = [a for a in _accelerators(machine, wishes) if a[2] & layer.wants]
    free = [a for a in wanted if a[0] not in taken]
    if not free:
        return None, f"all {len(wanted)} accelerators are taken" if wanted else "no accelerator may be used"

    def far(device: tuple[str, int | None, Hardware, str]) -> int:
        return machine.distance(near, near if device[1] is None else device[1])

    address, node, _, model = min(free, key=far)
    place = "" if node is None else f" on node {node}"
    return (address, node), f"{model} is free{place}"


# ---- what does not fit

def _problems(machine: Machine, wishes: Wishes, placement: Placement) -> tuple[str, ...]:
    return (*_cpu_problems(machine, placement), *_page_problems(machine, placement),
            *_device_problems(machine, wishes, placement))


def _cpu_problems(machine: Machine, placement: Placement) -> Iterable[str]:
    owners: dict[tuple[int, ...], list[str]] = {}
    cores = {cpu.number: cpu.siblings for cpu in machine.cpus}
    for s in (placement.router, *placement.seats):
        if missing := [cpu for cpu in s.cpus if cpu not in cores]:
            yield f"{s.name} is to run on CPU {missing[0]}, which does not exist"
        if len(s.cpus) == 1 and s.cpus[0] in cores:
            owners.setdefault(cores[s.cpus[0]], []).append(s.name)
    for cpu, swarm in machine.taken.items():
        if (core := cores.get(cpu, ())) in owners and (name := f"the swarm in {swarm}") not in owners[core]:
            owners[core].append(name)
    shared = {core: names for core, names in owners.items() if len(names) > 1}
    if shared:
        total = len(set(cores.values()))
        yield (f"{len(placement.seats) + 1} loops for {total} cores: "
               + "; ".join(f"core of CPU {core[0]}: {', '.join(names)}" for core, names in sorted(shared.items())))
    yield from _overlaps(machine, placement, cores)
    for s in placement.seats:
        if s.cpus and s.node != placement.home and len(machine.nodes) > 1:
            yield f"{s.name} is on node {s.node}, the NIC on node {placement.home}"


def _overlaps(machine: Machine, placement: Placement, cores: Mapping[int, tuple[int, ...]]) -> Iterable[str]:
    """Of layers that may run on several CPUs: more loops than cores, or others on these."""
    def where(cpus: Iterable[int]) -> set[tuple[int, ...]]:
        return {cores[cpu] for cpu in cpus if cpu in cores}

    wide = {s.layer: s.cpus for s in placement.seats if len(s.cpus) > 1}
    for layer, cpus in wide.items():
        mine, loops = where(cpus), sum(s.layer is layer for s in placement.seats)
        if loops > len(mine):
            yield f"{loops} {layer.label} instances for {len(mine)} cores: CPU {', '.join(map(str, cpus))}"
        others = [s.name for s in (placement.router, *placement.seats)
                  if mine & where(s.cpus) and (s.layer not in wide or s.layer > layer)]
        others += sorted({f"the swarm in {swarm}" for cpu, swarm in machine.taken.items() if cores.get(cpu) in mine})
        if others:
            yield f"{layer.label} may run on the cores of {', '.join(others)}: CPU {', '.join(map(str, cpus))}"


def _page_problems(machine: Machine, placement: Placement) -> Iterable[str]:
    wanted = pages_by_node((*placement.memories, *placement.seats))
    for node in machine.nodes:
        more = node.free_memory // PAGE_LEN
        if (pages := wanted.get(node.number, 0)) > node.free_hugepages + more:
            yield (f"node {node.number}: {pages} hugepages are wanted, {node.free_hugepages} are free, "
                   f"and in its memory is room for {more} more")
    for memory in placement.memories:
        if memory.node is None:
            yield f"edge {memory.name}: {memory.why}"


def _device_problems(machine: Machine, wishes: Wishes, placement: Placement) -> Iterable[str]:
    for layer in wishes.layers:
        without_one = [s for s in placement.seats if s.layer is layer.id and not s.accelerator]
        if layer.wants and without_one:
            yield (f"{len(without_one)} of {layer.instances} {layer.id.label} instances get no accelerator: "
                   f"{without_one[0].why.split(';')[0]}")
    for address in wishes.allow:
        if machine.function(address) is None:
            yield f"[hardware] allow names {address}, which is not there"


def _by_distance(machine: Machine, node: int) -> Sequence[int]:
    return sorted((n.number for n in machine.nodes), key=lambda other: (machine.distance(node, other), other))


def _where(node: int | None) -> str:
    return "anywhere" if node is None else f"node {node}"
