# SPDX-License-Identifier: Apache-2.0
"""tools/lab: up, down and status are idempotent, mend half a lab and touch nothing else."""

import errno
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from support import ROOT
from support.lab import Lab, in_netns, lab_made, unique_name
from support.leftovers import namespaces_of

pytestmark = pytest.mark.netns
LAB = str(ROOT / "tools/lab")

CONNECT = """
import socket, sys
try:
    socket.create_connection((sys.argv[1], 9), timeout=10)
except OSError as error:
    print(error.errno)
"""


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(argv, capture_output=True, text=True, check=False)


def links(namespace: str) -> dict[str, dict[str, Any]]:
    shown = subprocess.run(["ip", "-j", "-n", namespace, "addr"], capture_output=True, check=True)
    return {link["ifname"]: link for link in json.loads(shown.stdout)}


def addresses(namespace: str, link: str) -> set[str]:
    found = links(namespace)[link]["addr_info"]
    return {f"{address['local']}/{address['prefixlen']}" for address in found if address["scope"] == "global"}


@pytest.fixture
def prefix() -> Iterator[str]:
    name = unique_name()
    yield name
    run(LAB, "down", f"--prefix={name}")


def test_addresses_and_mtu(lab: Lab) -> None:
    assert addresses(lab.client, "eth0") == {"10.77.0.2/24", "fd77::2/64"}
    assert addresses(lab.host, "sl-nic0") == {"10.77.0.1/24", "fd77::1/64"}
    assert links(lab.client)["eth0"]["mtu"] == 1500


def test_client_sends_plain_frames(lab: Lab) -> None:
    features = run(*in_netns(lab.client, "ethtool", "-k", "eth0")).stdout
    for feature in ("tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload"):
        assert f"{feature}: off" in features


def test_second_up_changes_what_differs(prefix: str) -> None:
    root_links = run("ip", "-o", "link").stdout
    assert run(LAB, "up", "--prefix", prefix).returncode == 0
    index = links(f"{prefix}-host")["sl-nic0"]["ifindex"]
    assert run(LAB, "up", "--prefix", prefix, "--mtu", "9000").returncode == 0
    nic = links(f"{prefix}-host")["sl-nic0"]
    assert (nic["ifindex"], nic["mtu"]) == (index, 9000)
    assert run("ip", "-o", "link").stdout == root_links


def test_far_client_is_behind_a_gateway() -> None:
    with lab_made(far=True) as lab:
        assert addresses(lab.far, "eth0") == {"10.88.0.2/24", "fd88::2/64"}
        for host_ip in ("10.77.0.1", "fd77::1"):
            # Refused: the host's kernel got the packet, and its answer found the way back.
            tried = run(*in_netns(lab.far, sys.executable, "-c", CONNECT, host_ip))
            assert tried.stdout == f"{errno.ECONNREFUSED}\n", tried.stderr
        assert run(LAB, "up", "--prefix", lab.prefix).returncode == 0
        assert namespaces_of(lab.far) == []
        assert run("ip", "-n", lab.host, "route", "show", "10.88.0.0/24").stdout == ""


def test_half_a_lab_is_mended_and_removed(prefix: str) -> None:
    assert run("ip", "netns", "add", f"{prefix}-client").returncode == 0
    assert run(LAB, "status", "--prefix", prefix).returncode == 1
    assert run(LAB, "up", "--prefix", prefix).returncode == 0
    assert run("ip", "-n", f"{prefix}-client", "link", "del", "eth0").returncode == 0
    status = run(LAB, "status", "--prefix", prefix)
    assert (status.returncode, "incomplete" in status.stdout) == (1, True)
    assert run(LAB, "up", "--prefix", prefix).returncode == 0
    assert run(LAB, "status", "--prefix", prefix).returncode == 0
    for _ in range(2):
        assert run(LAB, "down", "--prefix", prefix).returncode == 0
        assert namespaces_of(prefix) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["up", "--mtu=100"], "--mtu must be 1280"),
        (["up", "--mtu"], "--mtu needs a number"),
        (["up", "--prefix=../x"], "--prefix must be a short name"),
        (["up", "sideways"], "unknown argument 'sideways'"),
        (["fly"], "unknown verb 'fly'"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments: list[str], says: str) -> None:
    tried = run(LAB, *arguments)
    assert tried.returncode == 1
    assert says in tried.stderr
    assert tried.stderr.count("\n") == 1
