# SPDX-License-Identifier: Apache-2.0
"""What a machine is made of, as far as placement cares: CPUs, NUMA nodes, PCI functions and their IOMMU groups.

Values only; ``host.hardware`` reads them from a sysfs. A *function* is what PCI calls one: 0000:3d:00.0. A *VF* is
a virtual function, its physical one is its *PF*.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from pipeline.policy.affinity import Hardware, from_names

VFIO_DRIVERS = ("vfio-pci", "pci-stub")      # of functions that no host driver touches
CPU_FLAGS: Mapping[str, Hardware] = {        # of /proc/cpuinfo, x86 and arm64
    "aes": Hardware.AES_NI, "vaes": Hardware.VAES, "sha_ni": Hardware.SHA_NI, "avx512f": Hardware.AVX512,
    "gfni": Hardware.GFNI,
}
ARM_FLAGS = frozenset({"aes", "pmull", "sha2"})


class Kind(StrEnum):
    """What a PCI function is for."""

    ACCELERATOR = "accelerator"
    NIC = "nic"
    STORAGE = "storage"
    BRIDGE = "bridge"
    OTHER = "other"


@dataclass(frozen=True)
class Model:
    """What the table of accelerators says of a PCI function."""

    family: str
    name: str
    affinity: Hardware = Hardware.NONE
    does: tuple[str, ...] = ()
    dpdk: str = ""
    caution: str = ""


@dataclass(frozen=True)
class Function:
    """One PCI function."""

    address: str
    vendor: str                       # four hexadecimal digits, as device
    device: str
    class_code: int                   # base class, subclass, interface: 0x020000
    driver: str = ""                  # empty: none
    node: int | None = None           # NUMA node; None: the machine does not say
    group: int | None = None          # IOMMU group; None: there is no IOMMU
    model: Model | None = None        # None: not in the table of accelerators
    interfaces: tuple[str, ...] = ()  # network interfaces, of this network namespace
    physical: str = ""                # of a VF: the address of its PF
    total_vfs: int = 0                # how many VFs it can have
    vfs: tuple[str, ...] = ()         # those it has
    resets: tuple[str, ...] = ()      # ways to reset it: flr, bus, pm, ...; none: it can not be reset

    @property
    def kind(self) -> Kind:
        base, sub = self.class_code >> 16, self.class_code >> 8 & 0xFF
        if base == 0x06:
            return Kind.BRIDGE
        if base == 0x02:
            return Kind.NIC
        if base == 0x10 or self.model:
            return Kind.ACCELERATOR
        if (base, sub) == (0x0B, 0x40) or base == 0x12:
            return Kind.ACCELERATOR
        return Kind.STORAGE if base == 0x01 else Kind.OTHER

    @property
    def affinity(self) -> Hardware:
        """What an instance that is given this function can say of itself."""
        if self.model and self.model.affinity:
            return self.model.affinity
        return Hardware.NIC_VF if self.kind is Kind.NIC and self.physical else Hardware.NONE

    @property
    def what(self) -> str:
        """For people: the model, or vendor, device and class."""
        if self.model:
            plain = self.model.name == self.model.family
            return self.model.name if plain else f"{self.model.family} {self.model.name}"
        what = _CLASSES.get(self.class_code >> 8) or _BASES.get(self.class_code >> 16, "")
        return f"{self.vendor}:{self.device} {what}".rstrip()


_BASES = {0x01: "storage", 0x02: "network", 0x03: "display", 0x04: "multimedia", 0x05: "memory", 0x06: "bridge",
          0x07: "communication", 0x08: "system", 0x09: "input", 0x0B: "processor", 0x0C: "serial bus",
          0x10: "encryption", 0x11: "signal processing", 0x12: "processing accelerator"}
_CLASSES = {0x0106: "SATA", 0x0108: "NVMe", 0x0200: "Ethernet", 0x0207: "InfiniBand", 0x0600: "host bridge",
            0x0604: "PCI bridge", 0x0C03: "USB", 0x0B40: "co-processor"}


@dataclass(frozen=True)
class Cache:
    """One CPU cache, and who shares it."""

    level: int
    kind: str                # Data, Instruction, Unified
    length: int              # bytes
    cpus: tuple[int, ...]


@dataclass(frozen=True)
class Cpu:
    """One hardware thread. ``siblings`` are all threads of its core, itself among them."""

    number: int
    node: int
    package: int
    core: int
    siblings: tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One NUMA node. ``distances`` are the firmware's, by node: 10 is itself."""

    number: int
    cpus: tuple[int, ...]
    memory: int                              # bytes
    hugepages: int = 0                       # of 2 MiB, in the pool
    free_hugepages: int = 0
    distances: Mapping[int, int] = field(default_factory=dict)
    free_memory: int = 0                     # bytes that could become hugepages: unused, or cached files


@dataclass(frozen=True)
class Machine:
    """Everything together. ``flags`` are those that every CPU has."""

    cpu_model: str = ""
    flags: frozenset[str] = frozenset()
    cpus: tuple[Cpu, ...] = ()
    caches: tuple[Cache, ...] = ()
    nodes: tuple[Node, ...] = ()
    functions: tuple[Function, ...] = ()
    isolated_cpus: tuple[int, ...] = ()      # kernel argument isolcpus
    default_routes: tuple[str, ...] = ()     # interfaces that have one
    vfio: bool = False                       # the driver vfio-pci is there
    taken: Mapping[int, str] = field(default_factory=dict)     # CPUs of running swarms' pinned parts, and whose

    @property
    def iommu(self) -> bool:
        return any(f.group is not None for f in self.functions)

    @property
    def cpu_affinity(self) -> Hardware:
        """The CPUs' part of hardware_affinity."""
        if self.flags >= ARM_FLAGS:          # x86 has no pmull
            return Hardware.ARM_CE
        return Hardware(sum(bit for flag, bit in CPU_FLAGS.items() if flag in self.flags))

    def function(self, address: str) -> Function | None:
        return next((f for f in self.functions if f.address == address), None)

    def node(self, number: int) -> Node | None:
        return next((n for n in self.nodes if n.number == number), None)

    def distance(self, one: int, other: int) -> int:
        """As the firmware says; 10 for a node itself, 20 for two that nothing is known of."""
        node = self.node(one)
        return node.distances.get(other, 10 if one == other else 20) if node else 20

    def companions(self, function: Function) -> tuple[Function, ...]:
        """The other functions of its IOMMU group without bridges: whoever is given one can reach the memory of all
        of them, because nothing between them (access control services of the ports above) keeps them apart.
        """
        if function.group is None:
            return ()
        return tuple(f for f in self.functions
                     if f.group == function.group and f is not function and f.kind is not Kind.BRIDGE)

    def ports(self, function: Function) -> tuple[Function, ...]:
        """The bridges in its IOMMU group. They stay with the host, but they do not isolate what is below them."""
        return tuple(f for f in self.functions
                     if f.group is not None and f.group == function.group and f.kind is Kind.BRIDGE)

    def obstacles(self, function: Function, allowed: Iterable[str] = ()) -> tuple[Function, ...]:
        """Companions that keep the function from being given away: those that a host driver uses and that may not be
        taken from it as well.
        """
        return tuple(f for f in self.companions(function)
                     if f.driver and f.driver not in VFIO_DRIVERS and not permitted(f, allowed))

    def isolation(self, function: Function) -> str:
        """One word or a short sentence for people."""
        if function.kind is Kind.BRIDGE:
            return "stays with the host"
        if function.group is None:
            return "no: no IOMMU"
        others = self.companions(function)
        if not others:
            return "yes"
        names = ", ".join(f.address for f in others)
        return f"only with {names}" if self.obstacles(function) else f"yes, with {names}"


def permitted(function: Function, allowed: Iterable[str]) -> bool:
    """Whether the configuration allows to touch it: it or its PF is named."""
    names = set(allowed)
    return function.address in names or bool(function.physical and function.physical in names)


class Table:
    """The table of accelerators (policy/accelerators.toml)."""

    def __init__(self, text: str) -> None:
        self._rows: list[tuple[str, str, Model]] = []
        for family in tomllib.loads(text)["family"]:
            bits = from_names([family["affinity"]]) if "affinity" in family else Hardware.NONE
            for device, name in family["devices"].items():
                model = Model(family["name"], name, bits, tuple(family["does"]), family.get("dpdk", ""),
                              family.get("caution", ""))
                self._rows.append((family["vendor"], device, model))

    def __iter__(self) -> Iterator[tuple[str, str, Model]]:
        return iter(self._rows)

    def model(self, vendor: str, device: str) -> Model | None:
        """The row of these numbers."""
        return next((model for v, pattern, model in self._rows if v == vendor and len(pattern) == len(device)
                     and all(a in (b, "?") for a, b in zip(pattern, device, strict=True))), None)
