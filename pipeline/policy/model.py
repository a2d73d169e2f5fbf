# SPDX-License-Identifier: Apache-2.0
"""The nouns. Frozen values: a change makes a new one, and two of them can be compared.

Numbers, names and limits are those of c/abi; tests/unit/test_model.py reads these headers and compares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum, StrEnum
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise

from pipeline.errors import PlanError

VM_MAX = 1024        # VMIDs are 1 ... VM_MAX - 1
VM_MANAGER = 0       # never in a route
SERVICE_MAX = 16
EDGES_MAX = 8        # edges of one instance
NAME_LEN = 16        # a layer's or a service's name with its terminating zero
LAYER_USER = 16      # first number of a user's own layers
LAYER_MAX = 32

SIDE_MAX = 64        # places on one side of an edge, so instances of one layer
ADDRESSES_MAX = 4    # virtual IPs of one service
HEADERS_MAX = 128    # fields of one HTTP message

IPAddress = IPv4Address | IPv6Address


class LayerId(IntEnum):
    """``protocol_layer`` (enum sl_layer_id)."""

    NONE = 0
    TCP = 1
    TLS = 2
    HTTP = 3
    APP = 4
    QUIC = 5
    HTTP3 = 6
    DNS = 7

    @property
    def label(self) -> str:
        """The layer's name as in the config file and in an edge's name."""
        return self.name.lower()


# which layers may follow which in a chain; it starts after NONE and ends with a layer that nothing follows
FOLLOWERS: Mapping[LayerId, tuple[LayerId, ...]] = {
    LayerId.NONE: (LayerId.TCP,),
    LayerId.TCP: (LayerId.TLS, LayerId.HTTP),
    LayerId.TLS: (LayerId.HTTP,),
    LayerId.HTTP: (LayerId.APP,),
    LayerId.APP: (),
}


class VmState(IntEnum):
    """Life cycle of an instance (enum sl_vm_state). Only ACTIVE gets new flows."""

    DEFINED = 0      # has a VMID and its slots; nothing runs
    BOOTING = 1      # started
    READY = 2        # attached its edges, its layer is initialised
    ACTIVE = 3       # in the RoutingTable
    DRAINING = 4     # finishes old flows
    GONE = 5
    FAILED = 6       # died or broke the contract


# from         to          when
# DEFINED      BOOTING     the manager starts it
# BOOTING      READY       it has attached its edges; or it is warm, and waits for a layer
# READY        BOOTING     warm, and was given a layer
# READY        ACTIVE      the manager saw its heartbeat, and that it and peers across its edges have found each other
# ACTIVE       DRAINING    the manager drains it
# DRAINING     GONE        no flow left, or the deadline passed
# DRAINING     BOOTING     the same, and was given another layer
# all of them  FAILED      it died, broke the contract, or was stopped before it drained
# never: DRAINING -> ACTIVE (a new instance is started instead), anything out of GONE or FAILED
TRANSITIONS: Mapping[VmState, frozenset[VmState]] = {
    VmState.DEFINED: frozenset({VmState.BOOTING, VmState.FAILED}),
    VmState.BOOTING: frozenset({VmState.READY, VmState.FAILED}),
    VmState.READY: frozenset({VmState.BOOTING, VmState.ACTIVE, VmState.FAILED}),
    VmState.ACTIVE: frozenset({VmState.DRAINING, VmState.FAILED}),
    VmState.DRAINING: frozenset({VmState.BOOTING, VmState.GONE, VmState.FAILED}),
    VmState.GONE: frozenset(),
    VmState.FAILED: frozenset(),
}


class Protocol(IntEnum):
    """Transport protocol of a service, by its IP protocol number."""

    TCP = 6
    UDP = 17


class Driver(StrEnum):
    """What an instance is made of."""

    PROCESS = "process"      # a sandboxed process in its own namespaces
    QEMU = "qemu"            # a virtual machine


class Side(IntEnum):
    """An end of an edge (enum sl_side)."""

    FRONT = 0    # nearer to the client: opens flows
    BACK = 1     # nearer to the application

    @property
    def other(self) -> Side:
        return Side.BACK if self is Side.FRONT else Side.FRONT

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True)
class Edge:
    """The shared memory between two adjacent layers, with places for so many instances at each end."""

    front: LayerId
    back: LayerId
    front_cap: int = 8
    back_cap: int = 8

    @property
    def name(self) -> str:
        return f"{self.front.label}-{self.back.label}"

    @property
    def id(self) -> int:
        return self.front << 8 | self.back

    def side(self, layers: tuple[LayerId, ...]) -> Side | None:
        """The end at which an instance of these layers attaches; None if neither or both are its own."""
        if (self.front in layers) == (self.back in layers):
            return None
        return Side.FRONT if self.front in layers else Side.BACK

    def cap(self, side: Side) -> int:
        return self.front_cap if side is Side.FRONT else self.back_cap


@dataclass(frozen=True)
class Slot:
    """One instance's place in an edge: row of the peer table, rings and arena."""

    edge: str
    side: Side
    index: int

    def __str__(self) -> str:
        return f"{self.edge}.{self.side.label}[{self.index}]"


@dataclass(frozen=True)
class RetiredSlot:
    """The place of an instance that left. It is free again when each peer has dropped its rings to it, that
    is, has seen the RoutingTable of this epoch, which is without the instance.
    """

    slot: Slot
    epoch: int
    waiting: frozenset[int]     # vm_ids of the peers that have not seen it


@dataclass(frozen=True)
class Chain:
    """Ordered layers, from the NIC inwards."""

    layers: tuple[LayerId, ...]

    def pairs(self) -> tuple[tuple[LayerId, LayerId], ...]:
        """Adjacent layers; one edge for each."""
        return tuple(pairwise(self.layers))

    def problem(self) -> str:
        """What is wrong with the order of the layers; empty if nothing is."""
        for before, after in pairwise((LayerId.NONE, *self.layers)):
            follow = FOLLOWERS.get(before, ())
            if after not in follow:
                place = f"after {before.label}" if before else "first"
                return f"{after.label} cannot stand {place}, allowed there: " + (
                    " or ".join(layer.label for layer in follow) or "nothing")
        if not self.layers or FOLLOWERS[self.layers[-1]]:
            return f"ends with {self.layers[-1].label if self.layers else 'nothing'}, allowed: app"
        return ""

    def __str__(self) -> str:
        return " → ".join(layer.label for layer in self.layers)


@dataclass(frozen=True)
class Service:
    """Virtual addresses, protocol and port, and the chain behind them.

    ``index`` is its number in the classifier. It stays the same while the service exists, whatever is added
    or removed around it: flows that are under way carry it.
    """

    name: str
    addresses: tuple[IPAddress, ...]
    port: int
    chain: Chain
    protocol: Protocol = Protocol.TCP
    index: int = 0


@dataclass(frozen=True)
class Layer:
    """A layer's pool. ``instances`` is the number wanted now; ``max`` also sizes the edges, so it cannot
    change live.

    ``revision`` names the settings: an instance that was started with another one is replaced.
    """

    id: LayerId
    instances: int = 2
    min: int = 1
    max: int = 8
    driver: Driver = Driver.PROCESS
    revision: str = ""
    autoscale: bool = False
    target_load: float = 0.6     # share of time in which the loops should be busy
    cooldown: float = 30.0       # seconds between two automatic changes
    memory: int = 128 << 20      # bytes of a virtual machine
    cpus: tuple[int, ...] = ()   # those that an instance may run on; none: any
    wants: int = 0               # bits of affinity.Hardware: each instance is best with one of these


@dataclass(frozen=True)
class Crypto:
    """What a tls instance measured of its own cryptography when it started, on one core."""

    kind: str                            # software, multi_buffer, device: what is in use now
    seal_mbps: tuple[int, ...]           # 10^6 bytes/s of AES-256-GCM in records of 256, 1400 and 16384 bytes
    handshakes: int                      # full ones of TLS 1.3 with P-256, the server's share; per second
    fallbacks: int = 0                   # times that its device failed


@dataclass(frozen=True)
class VMStatus:
    """What an instance says about itself, as last read from its control region, and what the manager adds."""

    vm_id: int
    protocol_layers: tuple[LayerId, ...]
    state: VmState
    load: int = 0                  # busy share of its loop's time, 0 ... 1000
    available_capacity: int = 0    # 1000 - load; 0 when not active
    allowance: float = 1.0         # share of a CPU's time that the machine lets it have; the manager adds it
    hardware_affinity: int = 0     # bits of affinity.Hardware
    active_flows: int = 0
    queue_depth: int = 0           # entries pending towards it
    oldest_ns: int = 0             # age of the oldest answer that is begun and not complete; 0: none
    heartbeat_ns: int = 0          # CLOCK_MONOTONIC; 0: none yet
    crypto: Crypto | None = None   # None: it has none, or has not measured


@dataclass(frozen=True)
class Instance:
    """One VM. ``state`` is the manager's view of it; ``status`` is its own, and is never compared.

    One without a layer is warm once it is ready: it can be given any, and then has a new ``incarnation``.
    """

    vm_id: int
    layers: tuple[LayerId, ...]
    driver: Driver = Driver.PROCESS
    state: VmState = VmState.DEFINED
    slots: tuple[Slot, ...] = ()
    revision: str = ""
    incarnation: int = 0                  # number of its start or assignment, unique in a swarm, unlike its VMID
    pid: int | None = field(default=None, compare=False)
    deadline: float | None = field(default=None, compare=False)     # of a drain, CLOCK_MONOTONIC seconds
    becomes: LayerId | None = field(default=None, compare=False)    # the layer that it gets once it has drained
    status: VMStatus | None = field(default=None, compare=False)
    linked: bool = field(default=True, compare=False)               # of a ready one: see policy.probe
    routes_epoch: int = field(default=0, compare=False)             # latest table carried out on all its edges

    def to(self, state: VmState) -> Instance:
        """The same instance in the next state. Raises PlanError for a step that TRANSITIONS does not have."""
        if state not in TRANSITIONS[self.state]:
            allowed = ", ".join(s.name.lower() for s in sorted(TRANSITIONS[self.state])) or "nothing"
            raise PlanError(f"{self} cannot become {state.name.lower()}; "
                            f"from {self.state.name.lower()} it can become {allowed}")
        return replace(self, state=state)

    @property
    def live(self) -> bool:
        """It counts as one of its layer's instances."""
        return self.state not in (VmState.GONE, VmState.FAILED)

    @property
    def has_heartbeat(self) -> bool:
        return self.status is not None and self.status.heartbeat_ns > 0

    @property
    def drained(self) -> bool:
        """It says itself that it is draining and has no flow left. Silence is no such answer."""
        return (self.status is not None and self.status.active_flows == 0
                and self.status.state in (VmState.DRAINING, VmState.GONE))

    @property
    def unfinished(self) -> int:
        """Flows that it would leave if it ended now, in the middle of its drain."""
        return self.status.active_flows if self.status and self.state is VmState.DRAINING else 0

    @property
    def warm(self) -> bool:
        """It runs and can be given a layer at once."""
        return not self.layers and self.state is VmState.READY

    def __str__(self) -> str:
        return f"{'+'.join(layer.label for layer in self.layers) or 'warm'} instance {self.vm_id}"


@dataclass(frozen=True)
class Route:
    """One instance in the RoutingTable."""

    vm_id: int
    weight: int            # 1 ... 65535; 0: no new flow, because it is not active
    load: int = 0          # 0 ... 1000
    affinity: int = 0      # hardware_affinity bits
    state: VmState = VmState.ACTIVE


@dataclass(frozen=True)
class RoutingTable:
    """protocol_layer → instances, best first. A higher epoch is a newer table."""

    epoch: int = 0
    routes: Mapping[LayerId, tuple[Route, ...]] = field(default_factory=dict)
    made_at: float = field(default=0.0, compare=False)     # CLOCK_MONOTONIC seconds

    def of(self, layer: LayerId) -> tuple[Route, ...]:
        return self.routes.get(layer, ())

    def active(self, layer: LayerId) -> tuple[tuple[int, int], ...]:
        """(vm_id, weight) of those that get new flows."""
        return tuple((r.vm_id, r.weight) for r in self.of(layer) if r.weight)


@dataclass(frozen=True)
class Swarm:
    """All of a swarm: what runs (actual) or what should (desired)."""

    services: tuple[Service, ...] = ()         # those that the classifier knows
    layers: tuple[Layer, ...] = ()             # of the desired one; the actual one has instances
    edges: tuple[Edge, ...] = ()
    instances: tuple[Instance, ...] = ()
    retired: tuple[RetiredSlot, ...] = ()
    routing: RoutingTable = field(default_factory=RoutingTable)
    router: bool = False
    classifier: str = ""                       # interface it is attached to; empty: to none
    last_vm_id: int = 0                        # VMIDs are given out upwards from here
    last_incarnation: int = 0

    def instance(self, vm_id: int) -> Instance | None:
        return next((i for i in self.instances if i.vm_id == vm_id), None)

    def layer(self, layer_id: LayerId) -> Layer | None:
        return next((layer for layer in self.layers if layer.id is layer_id), None)

    def pool(self, layer_id: LayerId, *states: VmState) -> tuple[Instance, ...]:
        """Instances that run this layer, in one of these states (none given: in any)."""
        return tuple(i for i in self.instances if layer_id in i.layers and (not states or i.state in states))

    def with_instance(self, instance: Instance) -> Swarm:
        """The same swarm in which this instance replaces the one with its VMID."""
        vm_id = instance.vm_id
        return replace(self, instances=tuple(instance if i.vm_id == vm_id else i for i in self.instances))
