# SPDX-License-Identifier: Apache-2.0
"""What can be done to a swarm, one step each, and what the swarm is afterwards."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pipeline.policy.model import Edge, Instance, LayerId, RoutingTable, Service, Swarm, VmState
from pipeline.policy.places import retire_slots


@dataclass(frozen=True)
class CreateEdge:
    edge: Edge

    def __str__(self) -> str:
        return f"create edge {self.edge.name} ({self.edge.front_cap} × {self.edge.back_cap} places)"


@dataclass(frozen=True)
class RemoveEdge:
    edge: Edge

    def __str__(self) -> str:
        return f"remove edge {self.edge.name}"


@dataclass(frozen=True)
class StartRouter:
    def __str__(self) -> str:
        return "start the router"


@dataclass(frozen=True)
class StopRouter:
    def __str__(self) -> str:
        return "stop the router"


@dataclass(frozen=True)
class StartInstance:
    """Start it and give it its edges. It becomes BOOTING, and READY by itself."""

    instance: Instance

    def __str__(self) -> str:
        at = f" at {', '.join(map(str, self.instance.slots)) or 'no edge'}" if self.instance.layers else ""
        return f"start {self.instance} ({self.instance.driver}){at}"


@dataclass(frozen=True)
class AssignInstance:
    """Give a running instance this layer and these places; it lets go of what it had. It becomes BOOTING, and READY by
    itself.
    """

    instance: Instance
    former: tuple[LayerId, ...] = ()

    def __str__(self) -> str:
        was = "+".join(layer.label for layer in self.former) or "warm"
        return f"assign {self.instance}, was {was}, at {', '.join(map(str, self.instance.slots))}"


@dataclass(frozen=True)
class ActivateInstance:
    """Command a ready instance to run. It gets flows with the SetRoutes that follows."""

    instance: Instance

    def __str__(self) -> str:
        return f"activate {self.instance}"


@dataclass(frozen=True)
class SetRoutes:
    """Render this table into the classifier's maps and the route pages."""

    table: RoutingTable

    def __str__(self) -> str:
        pools = (f"{layer.label}: {', '.join(str(r.vm_id) for r in routes)}"
                 for layer, routes in sorted(self.table.routes.items()))
        return f"set routes, epoch {self.table.epoch} ({'; '.join(pools) or 'none'})"


@dataclass(frozen=True)
class SetServices:
    """Tell the first layer's instances, the router, and then the classifier, which services there are."""

    services: tuple[Service, ...]

    def __str__(self) -> str:
        return f"set services {', '.join(s.name for s in self.services) or 'to none'}"


@dataclass(frozen=True)
class AttachClassifier:
    interface: str

    def __str__(self) -> str:
        return f"attach the classifier to {self.interface}"


@dataclass(frozen=True)
class DetachClassifier:
    interface: str

    def __str__(self) -> str:
        return f"detach the classifier from {self.interface}"


@dataclass(frozen=True)
class DrainInstance:
    """Command it to finish its flows; what is left at the deadline (CLOCK_MONOTONIC seconds) is closed."""

    instance: Instance
    deadline: float | None
    becomes: LayerId | None = None

    def __str__(self) -> str:
        return f"drain {self.instance}" + (f", then it becomes {self.becomes.label}" if self.becomes else "")


@dataclass(frozen=True)
class StopInstance:
    """End it, whatever it does, and take its places out of the edges."""

    instance: Instance

    def __str__(self) -> str:
        return f"stop {self.instance} ({self.instance.state.name.lower()})"


Action = (CreateEdge | RemoveEdge | StartRouter | StopRouter | StartInstance | AssignInstance | ActivateInstance
          | SetRoutes | SetServices | AttachClassifier | DetachClassifier | DrainInstance | StopInstance)


def kind_of(action: Action) -> str:
    """create-edge for CreateEdge"""
    return "".join("-" * (n > 0) + c.lower() if c.isupper() else c for n, c in enumerate(type(action).__name__))


def together_with(action: Action) -> str | None:
    """Neighbours of which this is the same, and not None, may be carried out at the same time."""
    return kind_of(action) if isinstance(action, StartInstance | AssignInstance | StopInstance) else None


def advance(swarm: Swarm, action: Action) -> Swarm:
    """The swarm after this action was done. News that came in the meantime stand: what has failed stays so.
    """
    match action:
        case CreateEdge(edge):
            return replace(swarm, edges=(*swarm.edges, edge))
        case RemoveEdge(edge):
            return replace(swarm, edges=tuple(e for e in swarm.edges if e != edge),
                           retired=tuple(r for r in swarm.retired if r.slot.edge != edge.name))
        case StartRouter() | StopRouter():
            return replace(swarm, router=isinstance(action, StartRouter))
        case StartInstance(instance):
            latest = max((swarm.last_incarnation, swarm.last_vm_id), (instance.incarnation, instance.vm_id))
            return replace(swarm, instances=(*swarm.instances, instance.to(VmState.BOOTING)),
                           last_incarnation=latest[0], last_vm_id=latest[1])
        case AssignInstance(instance, _):
            old = swarm.instance(instance.vm_id)
            if old is None or not old.live:
                return swarm
            return replace(swarm.with_instance(replace(instance, state=old.to(VmState.BOOTING).state)),
                           retired=retire_slots(swarm, old),
                           last_incarnation=max(swarm.last_incarnation, instance.incarnation))
        case ActivateInstance(instance):
            return _step(swarm, instance.vm_id, VmState.ACTIVE)
        case DrainInstance(instance, deadline, becomes):
            return _step(swarm, instance.vm_id, VmState.DRAINING, deadline, becomes)
        case StopInstance(instance):
            left = tuple(i for i in swarm.instances if i.vm_id != instance.vm_id)
            return replace(swarm, instances=left, retired=retire_slots(swarm, instance))
        case SetRoutes(table):
            return replace(swarm, routing=table)
        case SetServices(services):
            return replace(swarm, services=services)
        case AttachClassifier(interface):
            return replace(swarm, classifier=interface)
        case DetachClassifier():
            return replace(swarm, classifier="")


def _step(swarm: Swarm, vm_id: int, state: VmState, deadline: float | None = None,
          becomes: LayerId | None = None) -> Swarm:
    instance = swarm.instance(vm_id)
    if instance is None or not instance.live:
        return swarm
    return swarm.with_instance(replace(instance.to(state), deadline=deadline, becomes=becomes))
