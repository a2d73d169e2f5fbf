# SPDX-License-Identifier: Apache-2.0
"""The manager's faces: what a running swarm says of itself, and to whom."""

from functools import partial

import pytest
from system.clients import dial
from system.swarm_rig import Swarm, eventually

from pipeline.metrics import metrics

pytestmark = [pytest.mark.netns, pytest.mark.bpf]


def oldest(swarm: Swarm, layer: str) -> float:
    """Age of the oldest request of a layer, in seconds."""
    return max(i["oldest_ns"] for i in swarm.instances(layer)) / 1e9


def older(swarm: Swarm, layer: str) -> bool:
    return oldest(swarm, layer) > 0.3


def nothing_owed(swarm: Swarm, layer: str) -> bool:
    return oldest(swarm, layer) == 0


def scrape(swarm: Swarm) -> dict[str, float]:
    """All metrics by name and labels."""
    lines = metrics(swarm.status()).decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_age_of_the_oldest_request(swarm: Swarm) -> None:
    """A body that does not come: the request grows old at http and app, whatever else they answer meanwhile."""
    with dial(swarm.lab) as sock, dial(swarm.lab) as other:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        for layer in ("http", "app"):
            eventually(partial(older, swarm, layer), f"{layer} says how old it is")
        other.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert other.recv(100).startswith(b"HTTP/1.1 200 ")
        assert oldest(swarm, "app") > 0.3
        shown = {k: v for k, v in scrape(swarm).items() if k.startswith('swarmline_oldest_request_seconds{layer="app"')}
        assert max(shown.values()) > 0.3
        sock.sendall(b"cde")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
        for layer in ("tcp", "http", "app"):
            eventually(partial(nothing_owed, swarm, layer), f"{layer} has none any more")
