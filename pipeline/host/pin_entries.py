# SPDX-License-Identifier: Apache-2.0
"""What the classifier's maps hold, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.policy.model import IPAddress


@dataclass(frozen=True)
class Config:
    """What holds for the whole swarm (struct sl_config)."""

    epoch: int
    nb_queues: int


@dataclass(frozen=True)
class ServiceEntry:
    """One address of a service, as the classifier knows it."""

    name: str
    index: int
    address: IPAddress
    port: int
    protocol: int
    layer: int


@dataclass(frozen=True)
class VmEntry:
    """One row of the RoutingTable (struct sl_vm)."""

    vm_id: int
    gen: int
    state: int
    layer: int
    layers: tuple[int, ...]
    load: int                   # 0 ... 1000
    weight: int
    capacity: int
    hardware_affinity: int


@dataclass(frozen=True)
class FlowEntry:
    """A flow that the classifier remembers. ``valid``: its instance still takes it; else its next packet gets
    another one.
    """

    client: IPAddress
    client_port: int
    address: IPAddress
    port: int
    protocol: int
    vm_id: int
    service: int
    age: float                  # seconds
    valid: bool
    ack: int = 0                # TCP: the sequence number that the client expects next; 0: not known
