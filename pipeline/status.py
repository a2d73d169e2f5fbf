# SPDX-License-Identifier: Apache-2.0
"""The manager's knowledge as one JSON value: what `status --json`, `top` and the metrics show."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from pipeline.actor.held import Member
from pipeline.errors import SwarmlineError
from pipeline.host.report import Report
from pipeline.manager import Manager
from pipeline.policy.model import Instance, Route, RoutingTable


def status(manager: Manager) -> dict[str, Any]:
    """The shape is described in ``openapi``; keys are only ever added."""
    actual = manager.actual
    return {
        "swarm": {"name": manager.config.name, "pid": os.getpid(), "run_dir": str(manager.run_dir),
                  "interface": actual.classifier, "up": manager.complete, "events": dict(manager.events.counts)},
        "instances": [{**_instance(i, manager.reports.get(i.vm_id), manager.actor.held.members.get(i.vm_id)),
                       "device": manager.actor.held.accelerators.device(i.vm_id)}
                      for i in actual.instances],
        "layers": [{"layer": layer.id.label, "instances": layer.instances, "min": layer.min, "max": layer.max,
                    "active": len([i for i in actual.pool(layer.id) if i.state.name == "ACTIVE"]),
                    "scaled": {way: manager.autoscaler.scaled[layer.id, way] for way in ("up", "down")}}
                   for layer in manager.intent.layers],
        "edges": [_edge(manager, edge.name) for edge in actual.edges],
        "services": [{"name": s.name, "index": s.index, "addresses": [str(a) for a in s.addresses],
                      "protocol": s.protocol.name.lower(), "port": s.port,
                      "chain": [layer.label for layer in s.chain.layers]} for s in actual.services],
        "routing_table": _table(actual.routing),
        "router": _router(manager),
        "classifier": manager.actor.held.classifier.counters() if manager.actor.held.classifier else {},
    }


def _instance(instance: Instance, report: Report | None, member: Member | None) -> dict[str, Any]:
    own = report.status if report else None
    return {
        "vm_id": instance.vm_id,
        "layers": [layer.label for layer in instance.layers],
        "driver": instance.driver.value,
        **(member.running.about if member and member.running else {}),
        "state": instance.state.name.lower(),
        "pid": instance.pid,
        "load": own.load if own else 0,
        "available_capacity": own.available_capacity if own else 0,
        "hardware_affinity": own.hardware_affinity if own else 0,
        "active_flows": own.active_flows if own else 0,
        "queue_depth": own.queue_depth if own else 0,
        "oldest_ns": own.oldest_ns if own else 0,
        "requests": report.requests if report else 0,
        "bytes_in": report.bytes_in if report else 0,
        "bytes_out": report.bytes_out if report else 0,
        "busy_ns": report.busy_ns if report else 0,
        "latency": list(report.latency) if report else [],
        "counters": {name: n for name, n in report.counters.items() if n} if report else {},
        **({"crypto": asdict(own.crypto)} if own and own.crypto else {}),
        "error": report.text if report else "",
    }


def _edge(manager: Manager, name: str) -> dict[str, Any]:
    memory = manager.actor.held.edges[name]
    return {"name": name, "edge_id": memory.edge_id, "bytes": memory.length, "hugepages": memory.huge,
            "peers": [p.vm_id for p in memory.peers() if manager.actual.instance(p.vm_id)]}


def _table(table: RoutingTable) -> dict[str, Any]:
    return {"epoch": table.epoch,
            "layers": {layer.label: [_route(route) for route in routes] for layer, routes in table.routes.items()}}


def _route(route: Route) -> dict[str, Any]:
    return {"vm_id": route.vm_id, "weight": route.weight, "load": route.load, "state": route.state.name.lower()}


def _router(manager: Manager) -> dict[str, Any]:
    router = manager.actor.held.router
    if router is None:
        return {}
    try:
        totals, ports = router.counters()
    except SwarmlineError:
        return {}
    return {"pid": router.process.pid if router.process else None, "counters": {n: v for n, v in totals.items() if v},
            "ports": {vm_id: vars(p) for vm_id, p in ports.items()}}
