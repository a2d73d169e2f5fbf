# SPDX-License-Identifier: Apache-2.0
"""What the operator wants of the swarm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256

from pipeline.errors import PlanError
from pipeline.policy.config import Config
from pipeline.policy.model import Driver, Instance, Layer, LayerId, Service, VmState


@dataclass(frozen=True)
class Intent:
    """What the operator wants: the config file, and what was scaled and drained since."""

    services: tuple[Service, ...]
    layers: tuple[Layer, ...]             # those that the chains use
    interface: str
    drain_timeout: float = 30.0           # seconds
    drain: frozenset[int] = frozenset()   # VMIDs of instances that are to go, or have gone
    change: Mapping[int, LayerId] = field(default_factory=dict)   # VMIDs of instances that are to have another layer
    warm: Mapping[Driver, int] = field(default_factory=dict)      # instances without a layer to keep ready
    held: frozenset[LayerId] = frozenset()   # layers that get no new instance now: theirs keep dying
    force: bool = False                   # a layer may be left with fewer than `min` active instances


def intent_of(config: Config, digest: str = "") -> Intent:
    """As the config file says. ``digest``: of keys and certificates.

    The revision of a layer names all that its instances were started with: when it changes they are replaced one after
    another.
    """
    def revision(layer: Layer) -> str:
        parts = [layer.revision, digest if layer.id is LayerId.TLS else ""]
        parts += [repr(s) for s in config.services if layer.id in s.chain.layers]
        return sha256("|".join(parts).encode()).hexdigest()[:12]

    layers = tuple(replace(layer, revision=revision(layer)) for layer in config.layers)
    return Intent(config.services, layers, config.nic.label, config.drain_timeout, warm=config.warm)


def scale(layers: Sequence[Layer], layer_id: LayerId, instances: int) -> tuple[Layer, ...]:
    """The same layers, one of them with another number of instances."""
    layer = next((layer for layer in layers if layer.id is layer_id), None)
    if layer is None:
        raise PlanError(f"no service uses the layer {layer_id.label}",
                        hint=f"layers are: {', '.join(layer.id.label for layer in layers)}")
    if not layer.min <= instances <= layer.max:
        raise PlanError(f"layer {layer_id.label} cannot have {instances} instances",
                        hint=f"the config file allows {layer.min} to {layer.max}")
    return tuple(replace(other, instances=instances) if other is layer else other for other in layers)


def keep_indices(old: Iterable[Service], new: Sequence[Service]) -> tuple[Service, ...]:
    """A service that exists keeps its index; the others get those that are free."""
    held = {s.name: s.index for s in old}
    kept = {held[s.name] for s in new if s.name in held}
    free = iter(n for n in range(len(new) + len(kept)) if n not in kept)
    return tuple(replace(s, index=held[s.name] if s.name in held else next(free)) for s in new)


def scaled_as(layers: Sequence[Layer], former: Sequence[Layer]) -> tuple[Layer, ...]:
    """These layers with the number of instances that the former manager was asked for, where it is still allowed."""
    asked = {layer.id: layer.instances for layer in former}
    return tuple(replace(layer, instances=asked[layer.id]) if layer.min <= asked.get(layer.id, 0) <= layer.max
                 else layer for layer in layers)


def change_layer(intent: Intent, instance: Instance, layer: LayerId) -> Intent:
    """The same intent, and this instance is to have another layer. Its former layer then wants one instance less, but
    not fewer than ``min``, and the other one more. Raises PlanError.
    """
    if layer in instance.layers:
        raise PlanError(f"{instance} has this layer already")
    if instance.becomes or instance.state not in (VmState.ACTIVE, VmState.READY):
        raise PlanError(f"{instance} is {instance.state.name.lower()}", hint="an active or warm one can change")
    wanted = next((each.instances for each in intent.layers if each.id is layer), 0)
    layers = scale(intent.layers, layer, wanted + 1)
    driver = next(each.driver for each in layers if each.id is layer)
    if driver is not instance.driver:
        raise PlanError(f"{instance} is of driver {instance.driver}, those of layer {layer.label} are of {driver}")
    for former in (each for each in layers if each.id in instance.layers):
        layers = scale(layers, former.id, max(former.instances - 1, former.min))
    return replace(intent, layers=layers, change={**intent.change, instance.vm_id: layer})


def without(change: Mapping[int, LayerId], vm_id: int) -> dict[int, LayerId]:
    """``Intent.change`` for the others."""
    return {key: layer for key, layer in change.items() if key != vm_id}
