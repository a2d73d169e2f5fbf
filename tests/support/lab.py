# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for tests: bare ones, and whole labs made by ``tools/lab``, each with its own name."""

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from support import ROOT

PREFIX = f"slt{os.getpid()}"
"""Every namespace that this test session makes begins with this."""

_numbers = itertools.count()


def unique_name() -> str:
    """A prefix for namespaces that nobody else has."""
    return f"{PREFIX}-{next(_numbers)}"


def in_netns(name: str, *argv: str) -> list[str]:
    """The command ``argv`` as it runs in the network namespace; no other namespace changes."""
    return ["nsenter", f"--net=/run/netns/{name}", "--", *argv]


@contextmanager
def netns_made(label: str = "ns") -> Iterator[str]:
    """An empty network namespace whose loopback is up; removed at the end."""
    name = f"{unique_name()}-{label}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


@dataclass(frozen=True)
class Lab:
    """A lab that is up. ``far`` is the client behind a gateway, empty if the lab was made without one."""

    prefix: str
    far: str = ""
    nic: str = "sl-nic0"
    client_ip4: str = "10.77.0.2"
    client_ip6: str = "fd77::2"
    vip4: str = "10.77.0.10"
    vip6: str = "fd77::10"

    @property
    def client(self) -> str:
        """The client's namespace."""
        return f"{self.prefix}-client"

    @property
    def host(self) -> str:
        """The namespace where the swarm runs and where ``nic`` is."""
        return f"{self.prefix}-host"


@contextmanager
def lab_made(*, mtu: int = 1500, far: bool = False) -> Iterator[Lab]:
    """A lab with its own prefix, taken down at the end. For fixtures that live longer than one test too."""
    prefix, tool = unique_name(), str(ROOT / "tools/lab")
    options = ["--far"] if far else []
    try:
        subprocess.run([tool, "up", f"--prefix={prefix}", f"--mtu={mtu}", *options], check=True)
        yield Lab(prefix, far=f"{prefix}-far" if far else "")
    finally:
        subprocess.run([tool, "down", f"--prefix={prefix}"], check=True)
