# SPDX-License-Identifier: Apache-2.0
"""Commands that show a running swarm."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import accumulate, zip_longest
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pipeline.cli.client import call
from pipeline.cli.options import RUN_DIR, Json, RunDir, print_json


def status(run_dir: RunDir = RUN_DIR, as_json: Json = False) -> None:
    """Show instances, edges, services and the RoutingTable.

    Example: swarmline status --json
    """
    value = call(run_dir, "GET", "/v1/status")
    if as_json:
        print_json(value)
        return
    # in a pipe there is no width to keep to
    console = Console() if sys.stdout.isatty() else Console(width=120)
    for table in tables(value):
        console.print(table)


def events(run_dir: RunDir = RUN_DIR, as_json: Json = False,
           follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more.")] = False) -> None:
    """Show what happened, and why.

    Example: swarmline events --follow
    """
    last = 0
    while True:
        for event in call(run_dir, "GET", f"/v1/events?since={last}")["events"]:
            last = event["number"]
            if as_json:
                print_json(event)
            else:
                print(time.strftime("%H:%M:%S", time.localtime(event["time"])), event["kind"].ljust(18), event["text"])
        if not follow:
            return
        time.sleep(0.5)


def top(run_dir: RunDir = RUN_DIR,
        every: Annotated[float, typer.Option("--every", help="Seconds between two looks.")] = 1.0) -> None:
    """Watch the swarm live: rates, load, latency of each instance. Ctrl-C ends it.

    Example: swarmline top --every 0.5
    """
    console = Console() if sys.stdout.isatty() else Console(width=120)
    before, then = call(run_dir, "GET", "/v1/status"), time.monotonic()
    with Live(console=console, auto_refresh=False, screen=True) if console.is_terminal else nullcontext() as live:
        while True:
            time.sleep(max(every, 0.1))
            now, clock = call(run_dir, "GET", "/v1/status"), time.monotonic()
            table = rates_table(before, now, clock - then)
            if live:
                live.update(table, refresh=True)
            else:
                console.print(table)
            before, then = now, clock


def rates_table(before: dict[str, Any], now: dict[str, Any], seconds: float) -> Table:
    """What each instance did between two statuses."""
    table = Table(title=f"swarm {now['swarm']['name']}, RoutingTable epoch {now['routing_table']['epoch']}",
                  title_justify="left", box=SIMPLE, pad_edge=False)
    for name in ("vm", "layer", "state", "requests/s", "in/s", "out/s", "load", "queue", "oldest", "flows",
                 "p50", "p99"):
        table.add_column(name, justify="left" if name in ("layer", "state") else "right")
    former = {i["vm_id"]: i for i in before["instances"]}
    for i in sorted(now["instances"], key=_place):
        old = former.get(i["vm_id"], {"requests": 0, "bytes_in": 0, "bytes_out": 0, "latency": []})
        latency = [b - a for a, b in zip_longest(old["latency"], i["latency"], fillvalue=0)]
        table.add_row(str(i["vm_id"]), _layers(i), i["state"],
                      *(show((i[key] - old[key]) / seconds) for key, show in
                        (("requests", "{:.0f}".format), ("bytes_in", size), ("bytes_out", size))),
                      f"{i['load'] / 10:.0f} %", str(i["queue_depth"]), age(i["oldest_ns"]), str(i["active_flows"]),
                      quantile(latency, 0.5), quantile(latency, 0.99))
    return table


def quantile(buckets: Sequence[int], share: float) -> str:
    """The upper end of the bucket in which this share of the answers is reached; bucket n ends at 2^(n + 1) µs."""
    due = share * sum(buckets)
    for n, seen in enumerate(accumulate(buckets)):
        if seen and seen >= due:
            us = 2 ** (n + 1)
            return f"<{us} µs" if us < 1000 else f"<{us / 1000:.0f} ms"
    return ""


def _layers(instance: dict[str, Any]) -> str:
    return "+".join(instance["layers"]) or "(warm)"


def _place(instance: dict[str, Any]) -> tuple[int, int]:
    """In the order of the chain."""
    order = ("tcp", "tls", "http", "app")
    return order.index(instance["layers"][0]) if instance["layers"] else len(order), instance["vm_id"]


def tables(value: dict[str, Any]) -> list[Table]:
    """A status for people."""
    return [instances_table(value), routing_table(value), services_table(value)]


def instances_table(value: dict[str, Any]) -> Table:
    """Each layer's and instance's share of the work."""
    table = Table(title=f"swarm {value['swarm']['name']}", title_justify="left", box=SIMPLE, pad_edge=False)
    for name in ("vm", "layer", "driver", "state", "pid", "requests", "in", "out", "load", "queue", "oldest", "flows",
                 "busy"):
        table.add_column(name, justify="left" if name in ("layer", "driver", "state") else "right")
    for i in sorted(value["instances"], key=_place):
        driver = f"{i['driver']}/{i['accelerator']}" if "accelerator" in i else i["driver"]
        table.add_row(str(i["vm_id"]), _layers(i), driver, i["state"], str(i["pid"]), str(i["requests"]),
                      size(i["bytes_in"]), size(i["bytes_out"]), f"{i['load'] / 10:.0f} %", str(i["queue_depth"]),
                      age(i["oldest_ns"]), str(i["active_flows"]), f"{i['busy_ns'] / 1e6:.0f} ms")
    return table


def routing_table(value: dict[str, Any]) -> Table:
    """Who gets new flows, the best first."""
    title = f"RoutingTable, epoch {value['routing_table']['epoch']}"
    table = Table(title=title, title_justify="left", box=SIMPLE, pad_edge=False)
    table.add_column("protocol_layer")
    table.add_column("vm_ids by load and hardware affinity (weight)")
    for layer, routes in value["routing_table"]["layers"].items():
        table.add_row(layer, "  ".join(f"{r['vm_id']} ({r['weight'] if r['weight'] else r['state']})" for r in routes))
    return table


def services_table(value: dict[str, Any]) -> Table:
    """Services and their chains."""
    table = Table(title="services", title_justify="left", box=SIMPLE, pad_edge=False)
    for name in ("name", "addresses", "port", "chain"):
        table.add_column(name)
    for s in value["services"]:
        table.add_row(s["name"], ", ".join(s["addresses"]), f"{s['protocol']}/{s['port']}", " → ".join(s["chain"]))
    return table


def age(ns: int) -> str:
    """Of the oldest request, for people."""
    if not ns:
        return ""
    return f"{ns / 1e6:.0f} ms" if ns < 1e10 else f"{ns / 1e9:.0f} s"


def size(count: float) -> str:
    """Bytes for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return ""


def register(cli: typer.Typer) -> None:
    cli.command()(status)
    cli.command()(events)
    cli.command()(top)
