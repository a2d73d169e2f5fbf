# SPDX-License-Identifier: Apache-2.0
"""VMIDs, places in edges, and the order of layers."""

from dataclasses import replace

import pytest
from unit.plan_world import APP, HTTP, TCP, TLS

from pipeline.errors import PlanError
from pipeline.policy.model import (
    VM_MAX,
    Edge,
    Side,
    Slot,
)
from pipeline.policy.places import allocate_vm_id, assign_slots
from pipeline.policy.plan import layer_order


def test_vm_ids() -> None:
    assert allocate_vm_id((), 0) == 1
    assert allocate_vm_id({2, 3}, 1) == 4
    assert allocate_vm_id({1}, VM_MAX - 1) == 2
    assert allocate_vm_id((), VM_MAX - 2) == VM_MAX - 1
    assert allocate_vm_id(set(range(1, VM_MAX)) - {7}, 7) == 7
    with pytest.raises(PlanError, match="all 1023 VMIDs"):
        allocate_vm_id(set(range(1, VM_MAX)), 5)


def test_slots() -> None:
    edges = (Edge(TCP, TLS, 2, 2), Edge(TLS, HTTP, 2, 2), Edge(HTTP, APP, 2, 2))
    first = assign_slots((TLS,), edges, set())
    assert first == (Slot("tcp-tls", Side.BACK, 0), Slot("tls-http", Side.FRONT, 0))
    assert [s.index for s in assign_slots((TLS,), edges, {first[1]})] == [0, 1]
    assert assign_slots((TLS, HTTP), edges, set()) == (
        Slot("tcp-tls", Side.BACK, 0),
        Slot("http-app", Side.FRONT, 0),
    ), "the edge between its own layers is inside it"
    with pytest.raises(PlanError, match="edge tls-http has no free place at its front"):
        assign_slots((TLS,), edges, {first[1], replace(first[1], index=1)})


def test_layer_order() -> None:
    assert layer_order([Edge(HTTP, APP), Edge(TCP, HTTP), Edge(TLS, HTTP), Edge(TCP, TLS)]) == (
        TCP,
        TLS,
        HTTP,
        APP,
    )
    assert layer_order([]) == ()
