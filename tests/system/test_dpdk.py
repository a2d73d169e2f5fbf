# SPDX-License-Identifier: Apache-2.0
"""A swarm whose NIC DPDK drives: here net_af_packet on the lab's interface. The classifier runs in the router."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from support.lab import Lab
from system.clients import Load, curl, dial, received
from system.swarm_rig import INDEX, Swarm, config_of, eventually, kill, swarm_made, swarm_prepared, toml

from pipeline.cli import preflight
from pipeline.errors import HostError
from pipeline.host.classifier import Pins, pin_root
from pipeline.policy.config import parse_config

pytestmark = [pytest.mark.netns, pytest.mark.bpf, pytest.mark.dpdk]

NETWORKS = ["10.77.0.0/24", "fd77::/64"]


def nic_of(lab: Lab, **changes: Any) -> dict[str, Any]:
    """The config's table [nic]."""
    device = f"net_af_packet0,iface={lab.nic}"
    return {"nic": {"driver": "dpdk", "interface": None, "devargs": device, "networks": NETWORKS, **changes}}


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    with swarm_made(module_lab, nic_of(module_lab)) as made:
        yield made


def router_pid(swarm: Swarm) -> int:
    return int(swarm.status()["router"]["pid"])


@pytest.mark.parametrize(
    "url", [f"{scheme}://{host}/" for scheme in ("https", "http") for host in ("10.77.0.10", "[fd77::10]")]
)
def test_curl(swarm: Swarm, url: str) -> None:
    assert not swarm.xdp(), "the kernel has no part in it"
    assert curl(swarm.lab.client, url) == INDEX
    assert curl(swarm.lab.client, f"{url}echo", "--data", "hello") == b"hello"


def test_large_body_both_ways(swarm: Swarm, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(bytes(range(256)) * 8192)
    assert curl(swarm.lab.client, "https://10.77.0.10/echo", "--data-binary", f"@{body}") == body.read_bytes()


def test_counters_and_flows_are_shown(swarm: Swarm) -> None:
    """The same maps as of the classifier in the kernel, about a second later."""
    with Pins(pin_root(swarm.run_dir)) as pins, dial(swarm.lab) as sock:
        before = pins.counters()["flow_new"]
        assert before > 0 or eventually(lambda: pins.counters()["flow_new"] > 0, "counters are published")
        port = sock.getsockname()[1]
        flow = eventually(lambda: next((f for f in pins.flows() if f.client_port == port), None), "the flow is shown")
        assert (str(flow.client), flow.port, flow.valid) == (swarm.lab.client_ip4, 80, True)
        eventually(lambda: pins.counters()["flow_new"] > before, "the flow is counted")
        eventually(lambda: pins.counters()["flow_known"] > 0, "its packets are counted")


def test_what_is_of_no_service_is_left_to_the_kernel_alone(swarm: Swarm) -> None:
    """net_af_packet sees copies: the interface's own address answers, and the router sends nothing."""
    with Pins(pin_root(swarm.run_dir)) as pins:
        before = pins.counters()["pass_not_ours"]
        with pytest.raises(ConnectionRefusedError):
            dial(swarm.lab, 9, "10.77.0.1")
        eventually(lambda: pins.counters()["pass_not_ours"] > before, "it is counted")


def test_router_has_given_up_its_rights(swarm: Swarm) -> None:
    """In every thread of it, those of EAL too."""
    for task in Path(f"/proc/{router_pid(swarm)}/task").iterdir():
        lines = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines() if ":\t" in line)
        assert int(lines["CapEff"], 16) == int(lines["CapPrm"], 16) == 0, lines["Name"]
        assert (lines["Seccomp"], lines["NoNewPrivs"]) == ("2", "1"), lines["Name"]
        assert "0" not in lines["Uid"].split(), lines["Name"]


def test_connections_outlive_the_router_and_a_changed_table(swarm: Swarm) -> None:
    """What is known of flows is in a pinned map: half of these would go to the new instance otherwise."""
    socks = [dial(swarm.lab) for _ in range(12)]
    for sock in socks:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(65536).startswith(b"HTTP/1.1 200")
    swarm.command("scale", "tcp=2")
    swarm.eventually_active("tcp", 2)
    old = router_pid(swarm)
    kill(old)
    eventually(lambda: router_pid(swarm) not in (0, old), "another router")
    for sock in socks:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    for sock in socks:
        data, end = received(sock)
        assert INDEX in data and end == "fin"
        sock.close()


def test_new_flows_follow_the_table(swarm: Swarm) -> None:
    """The router is given each new table; a drained instance gets no new flow, and none is disturbed."""
    swarm.command("scale", "tcp=2")
    pool = swarm.eventually_active("tcp", 2)
    with Load(swarm.lab) as load:
        load.goes_on(100)
        swarm.command("drain", str(pool[0]["vm_id"]))
        eventually(lambda: pool[0]["vm_id"] not in swarm.pids(), "the drained instance is gone")
        swarm.eventually_active("tcp", 2)
        load.goes_on(100)
    with Pins(pin_root(swarm.run_dir)) as pins:
        valid = {flow.vm_id for flow in pins.flows() if flow.valid}
        assert valid <= {i["vm_id"] for i in swarm.instances("tcp")}


def test_services_come_and_go(swarm: Swarm) -> None:
    """A reload changes maps that the router can not map: it reads them again."""
    changes = nic_of(swarm.lab)
    services = config_of(swarm.lab)["service"]
    other = {**services[1], "name": "other", "port": 8080}
    swarm.config.write_text(toml(config_of(swarm.lab, {**changes, "service": [*services, other]})))
    swarm.command("reload")
    eventually(lambda: "other" in [s["name"] for s in swarm.status()["services"]], "the service is there")

    def answers() -> bool:
        try:
            return curl(swarm.lab.client, "--connect-timeout", "1", "http://10.77.0.10:8080/") == INDEX
        except AssertionError:
            return False

    eventually(answers, "the new service answers")
    swarm.configure(changes)
    swarm.command("reload")
    with Pins(pin_root(swarm.run_dir)) as pins:
        eventually(lambda: all(s.port != 8080 for s in pins.services()), "the service is gone")
        eventually(lambda: all(f.port != 8080 for f in pins.flows()), "and its flows")
    assert curl(swarm.lab.client, "http://10.77.0.10/") == INDEX


def test_a_build_without_dpdk_says_so(module_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "PROGRAM_DPDK", "swarmline-router-nobody-built")
    config = parse_config(toml(config_of(module_lab, nic_of(module_lab))), "swarm.toml")
    with pytest.raises(HostError, match="built without DPDK"):
        preflight.machine(config)


def test_the_rest_builds_without_dpdk(tmp_path: Path) -> None:
    def run(*words: str | Path) -> str:
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout

    options = ["-Ddpdk=disabled", "-Dnative=disabled", "-Dtests=false", "-Dbuildtype=debug"]
    run(Path(sys.executable).with_name("meson"), "setup", *options, tmp_path, ROOT)
    run("ninja", "-C", tmp_path, "c/router/swarmline-router")
    assert "librte" not in run("readelf", "-d", tmp_path / "c/router/swarmline-router")
    known = run("ninja", "-C", tmp_path, "-t", "targets", "all")
    assert "router/swarmline-router:" in known
    assert "router-dpdk" not in known


@pytest.mark.parametrize(
    ("devargs", "says"),
    [
        ("net_af_packet0,iface=nosuch", "step=find error=\"no Ethernet device"),
        ("net_nosuch0", "step=(eal|find)"),
        ("0000:ff:1f.7", "step=(eal|find)|free huge pages"),  # by whether there are huge pages and a PCI bus
    ],
)
def test_wrong_device(module_lab: Lab, devargs: str, says: str) -> None:
    """One clear line, and nothing is left (which the rig checks)."""
    with swarm_prepared(module_lab, nic_of(module_lab, devargs=devargs), alone=False) as swarm:
        done = swarm.command("up", str(swarm.config), "--detach", ok=False)
        assert done.returncode != 0
        assert re.search(f"event=start device={devargs} .*({says})", done.stderr), done.stderr
