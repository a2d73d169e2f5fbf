# SPDX-License-Identifier: Apache-2.0
"""The status as Prometheus metrics: read at the moment of the scrape, nothing is kept here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

INSTANCE = ("layer", "vm_id")
GAUGES: Mapping[str, tuple[str, float, str]] = {       # key of the status: (metric, factor, help)
    "load": ("load_ratio", 0.001, "Busy share of the loop's time."),
    "active_flows": ("active_flows", 1, "Flows that are open."),
    "queue_depth": ("queue_depth", 1, "Entries pending towards the instance."),
    "oldest_ns": ("oldest_request_seconds", 1e-9, "Age of the oldest request that is not answered yet; 0: none."),
}
COUNTERS: Mapping[str, tuple[str, float, str]] = {
    "requests": ("requests", 1, "Requests (http, app) or connections (tcp, tls)."),
    "bytes_in": ("bytes_in", 1, "Payload from the client's direction."),
    "bytes_out": ("bytes_out", 1, "Payload towards the client."),
    "busy_ns": ("busy_seconds", 1e-9, "Time that the loop spent on work."),
}


def metrics(status: Mapping[str, Any]) -> bytes:
    """The text of a scrape, from ``pipeline.status.status``."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Once(status))
    return bytes(generate_latest(registry))


class _Once:
    def __init__(self, status: Mapping[str, Any]) -> None:
        self._status = status

    def collect(self) -> Iterable[Metric]:
        yield from _instances(self._status["instances"])
        yield from _layers(self._status["layers"])
        yield from _edges(self._status["edges"])
        yield from _routing(self._status["routing_table"])
        frames = self._status["router"].get("counters", {})
        yield _totals("router_frames", "Frames by what the router did with them.", frames)
        yield _totals("classifier_packets", "Packets by verdict of the classifier.", self._status["classifier"])
        yield _totals("events", "What the manager did or noticed.", self._status["swarm"]["events"], "kind")


def _instances(instances: Iterable[Mapping[str, Any]]) -> Iterable[Metric]:
    for key, (name, factor, text) in GAUGES.items():
        gauge = GaugeMetricFamily(f"swarmline_{name}", text, labels=INSTANCE)
        for i in instances:
            gauge.add_metric(_labels(i), i[key] * factor)
        yield gauge
    for key, (name, factor, text) in COUNTERS.items():
        counter = CounterMetricFamily(f"swarmline_{name}", text, labels=INSTANCE)
        for i in instances:
            counter.add_metric(_labels(i), i[key] * factor)
        yield counter
    refused = CounterMetricFamily("swarmline_instance_events", "Things turned away, and other counts, by reason.",
                                  labels=(*INSTANCE, "reason"))
    latency = HistogramMetricFamily(
        "swarmline_latency_seconds",
        "Time to answer: requests at http and app, handshakes at tls, first answer at tcp.", labels=INSTANCE)
    for i in instances:
        for reason, count in i["counters"].items():
            refused.add_metric((*_labels(i), reason), count)
        buckets, total = _buckets(i["latency"])
        latency.add_metric(_labels(i), buckets, total)
    yield refused
    yield latency


def _buckets(counts: Iterable[int]) -> tuple[list[tuple[str, float]], float]:
    """Cumulative; bucket n of the ABI ends at 2^(n + 1) µs. The sum is estimated from the middle of each bucket."""
    out, seen, total = [], 0, 0.0
    for n, count in enumerate(counts):
        seen += count
        total += count * 1.5 * 2**n / 1e6
        out.append((f"{2 ** (n + 1) / 1e6:g}", float(seen)))
    return [*out, ("+Inf", float(seen))], total


def _layers(layers: Iterable[Mapping[str, Any]]) -> Iterable[Metric]:
    gauge = GaugeMetricFamily("swarmline_instances", "Instances of a layer: wanted, active, and the bounds.",
                              labels=("layer", "which"))
    for layer in layers:
        for which in ("instances", "active", "min", "max"):
            gauge.add_metric((layer["layer"], "wanted" if which == "instances" else which), layer[which])
    yield gauge
    scaled = CounterMetricFamily("swarmline_scale_decisions", "Automatic decisions.", labels=("layer", "direction"))
    for layer in layers:
        for way, count in layer["scaled"].items():
            scaled.add_metric((layer["layer"], way), count)
    yield scaled


def _edges(edges: Iterable[Mapping[str, Any]]) -> Iterable[Metric]:
    for key, text in (("bytes", "Shared memory."), ("peers", "Instances that are attached."),
                      ("hugepages", "1: of 2 MiB pages, 0: of small ones.")):
        gauge = GaugeMetricFamily(f"swarmline_edge_{key}", f"Of an edge: {text}", labels=("edge",))
        for edge in edges:
            gauge.add_metric((edge["name"],), len(edge[key]) if key == "peers" else int(edge[key]))
        yield gauge


def _routing(table: Mapping[str, Any]) -> Iterable[Metric]:
    yield GaugeMetricFamily("swarmline_routing_epoch", "Epoch of the RoutingTable.", value=table["epoch"])
    weight = GaugeMetricFamily("swarmline_route_weight", "Share of new flows; 0: none.", labels=INSTANCE)
    for layer, routes in table["layers"].items():
        for route in routes:
            weight.add_metric((layer, str(route["vm_id"])), route["weight"])
    yield weight


def _totals(name: str, text: str, values: Mapping[str, int], label: str = "verdict") -> Metric:
    counter = CounterMetricFamily(f"swarmline_{name}", text, labels=(label,))
    for key, value in values.items():
        counter.add_metric((key,), value)
    return counter


def _labels(instance: Mapping[str, Any]) -> tuple[str, str]:
    return "+".join(instance["layers"]), str(instance["vm_id"])
