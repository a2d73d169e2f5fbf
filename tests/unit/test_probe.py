# SPDX-License-Identifier: Apache-2.0
"""The probe of a ready instance: when its edges are known to work from both ends."""

from dataclasses import replace

import pytest

from pipeline.policy.actions import ActivateInstance
from pipeline.policy.model import Instance, LayerId, Route, RoutingTable, Side, Slot, Swarm, VmState, VMStatus
from pipeline.policy.plan import diff
from pipeline.policy.probe import Probes, grace, linked, relieved

HTTP, APP, TLS = LayerId.HTTP, LayerId.APP, LayerId.TLS
NEW = Instance(9, (HTTP,), state=VmState.READY, incarnation=9, slots=(
    Slot("tls-http", Side.BACK, 1), Slot("http-app", Side.FRONT, 1)), status=VMStatus(9, (HTTP,), VmState.READY,
                                                                                    heartbeat_ns=1))
FRONT = Instance(1, (TLS,), state=VmState.ACTIVE, incarnation=1, slots=(Slot("tls-http", Side.FRONT, 0),))
BACK = [Instance(n, (APP,), state=VmState.ACTIVE, incarnation=n, slots=(Slot("http-app", Side.BACK, n),))
        for n in (2, 3)]
SWARM = Swarm(instances=(NEW, FRONT, *BACK))


@pytest.mark.parametrize(
    ("seen", "is_linked"),
    [
        ({9: (5, 5), 1: (5,), 2: (5,), 3: (5,)}, True),
        ({9: (6, 5), 1: (7,), 2: (4,), 3: (5,)}, True),      # one of those across does not answer
        ({9: (5, 5), 1: (5,), 2: (4,), 3: (4,)}, False),     # nobody at the back knows it
        ({9: (5, 5), 1: (4,), 2: (5,), 3: (5,)}, False),     # nobody at the front does
        ({9: (5, 4), 1: (5,), 2: (5,), 3: (5,)}, False),     # it does not know those at the back
        ({9: (5, 5)}, False),
        ({}, False),
    ],
)
def test_both_ends_of_each_edge(seen: dict[int, tuple[int, ...]], is_linked: bool) -> None:
    assert linked(SWARM, NEW, 5, seen) is is_linked


@pytest.mark.parametrize(
    ("drains", "seen", "is_relieved"),
    [
        (2, {9: (7, 6), 1: (6,)}, True),
        (2, {9: (7, 5), 1: (6,)}, False),         # its sender still goes by the table before
        (9, {9: (7, 5), 1: (6,)}, True),          # that table is of the edge behind it
        (9, {9: (7, 7), 1: (5,)}, False),
        (1, {9: (5, 5), 1: (5,)}, True),          # nobody is in front of it
        (2, {9: (5, 5), 1: (6,)}, False),
        (2, {1: (6,)}, True),                     # it has not told anything, so it has no flows
    ],
)
def test_a_draining_one_waits_for_its_senders(drains: int, seen: dict[int, tuple[int, ...]], is_relieved: bool) -> None:
    swarm = replace(SWARM, instances=(replace(NEW, state=VmState.ACTIVE), FRONT, *BACK))
    instance = swarm.instance(drains)
    assert instance
    assert relieved(swarm, instance, 6, seen) is is_relieved
    dead = swarm.with_instance(replace(swarm.instances[0], state=VmState.FAILED))
    assert relieved(dead, BACK[0], 6, {9: (5, 5)})


def test_clients_are_farther_away_than_peers() -> None:
    assert grace(Instance(1, (LayerId.TCP,))) > 3 * grace(Instance(1, (TLS,)))


def test_the_first_table_that_says_so_counts() -> None:
    probes = Probes()
    swarm = replace(SWARM, instances=(replace(NEW, state=VmState.ACTIVE), FRONT, *BACK))
    for epoch, state in ((4, VmState.ACTIVE), (5, VmState.DRAINING), (6, VmState.DRAINING)):
        probes.note(swarm, RoutingTable(epoch, {APP: (Route(2, 0, state=state),)}))
    assert not probes.relieved(swarm, BACK[0], {9: (4, 4)})
    assert probes.relieved(swarm, BACK[0], {9: (5, 5)})


def test_not_before_a_table_names_it() -> None:
    assert not linked(SWARM, NEW, 0, {9: (5, 5), 1: (5,), 2: (5,), 3: (5,)})


def test_the_first_of_all_wait_for_nobody() -> None:
    young = tuple(replace(i, state=VmState.READY) for i in SWARM.instances)
    assert linked(replace(SWARM, instances=young), NEW, 0, {})


def test_gets_no_flows_until_then() -> None:
    """But its peers are told of it, or it would wait for ever."""
    table = RoutingTable(4, {HTTP: (Route(9, 0, state=VmState.READY),)})
    for swarm in (SWARM, replace(SWARM, routing=table)):
        waits = replace(swarm, instances=(replace(NEW, linked=False), FRONT, *BACK))
        wanted = replace(waits, instances=(replace(NEW, state=VmState.ACTIVE), FRONT, *BACK))
        assert not [a for a in diff(waits, wanted) if isinstance(a, ActivateInstance)]
        assert [a for a in diff(swarm, wanted) if isinstance(a, ActivateInstance)]
