# SPDX-License-Identifier: Apache-2.0
"""The walls: what an instance can see, hold and do, as the kernel tells it. And where the private key is."""

import json
import os
import pickle
import re
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.lab import Lab
from support.leftovers import processes_of
from system.clients import curl, dial_tls, tls_context
from system.swarm_rig import OWN_CERTIFICATE, OWN_NAME, Swarm, certificate_made, swarm_prepared
from system.walls import EDGES, holds_key, memfds_mapped, memory, needles

from pipeline.host import keys
from pipeline.host.holder_client import HolderClient

pytestmark = [pytest.mark.netns, pytest.mark.bpf]

NAMESPACES = ("net", "mnt", "pid", "ipc", "user", "uts")
LAYERS = pytest.mark.parametrize("layer", EDGES)


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    """A swarm with a key of our own in a file, that has served requests."""
    with swarm_prepared(module_lab, {"layer.tls": OWN_CERTIFICATE}) as made:
        certificate_made(made.folder, OWN_NAME)
        made.up()
        for scheme in ("https", "http") * 4:
            curl(module_lab.client, f"{scheme}://10.77.0.10/echo", "--data", "hello")
        yield made


def pids(swarm: Swarm, layer: str) -> list[int]:
    found = [int(i["pid"]) for i in swarm.instances(layer)]
    assert found
    return found


def descriptors(pid: int) -> set[str]:
    return {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}


@LAYERS
def test_mappings_are_the_edges_of_its_layer(swarm: Swarm, layer: str) -> None:
    for instance in swarm.instances(layer):
        expected = {f"sl-edge-{edge}" for edge in EDGES[layer]} | {f"sl-control-{instance['vm_id']}"}
        assert memfds_mapped(instance["pid"]) == expected


@LAYERS
def test_descriptors_lead_nowhere_else(swarm: Swarm, layer: str) -> None:
    """Memory of its own edges, its log, doorbells, sockets; an app instance its root folder."""
    for instance in swarm.instances(layer):
        mine = {f"sl-edge-{edge}" for edge in EDGES[layer]} | {f"sl-control-{instance['vm_id']}"}
        held = descriptors(instance["pid"])
        assert {m[1] for d in held if (m := re.match(r"/memfd:(\S+)", d))} <= mine
        files = {d for d in held if d.startswith("/") and not d.startswith(("/memfd:", "/dev/null"))}
        log = str(swarm.run_dir / f"log/instance-{instance['vm_id']}.log")
        assert files == {log, "/"} if layer == "app" else {log}


def test_folder_of_app_has_nothing_above_it(swarm: Swarm) -> None:
    """It is the root of a mount of its own, which cannot be written through."""
    for pid in pids(swarm, "app"):
        (folder,) = (link for link in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(link) == "/")
        assert os.path.samestat(os.stat(folder), os.stat(swarm.site))
        assert os.path.samestat(os.stat(f"{folder}/.."), os.stat(swarm.site))
        with pytest.raises(OSError, match="Read-only"):
            Path(f"{folder}/new").write_text("x")


@LAYERS
def test_no_rights(swarm: Swarm, layer: str) -> None:
    for pid in pids(swarm, layer):
        facts = dict(
            line.split(":\t") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        assert {facts[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
        assert facts["Seccomp"] == "2"
        assert facts["NoNewPrivs"] == "1"
        assert not facts["Groups"].strip()
        assert facts["Threads"] == "1"


def test_every_process_of_an_instance_has_its_own_user(swarm: Swarm) -> None:
    owners = [os.stat(f"/proc/{i['pid']}/mem").st_uid for i in swarm.instances()]
    users = [
        Path(f"/proc/{i['pid']}/status").read_text().partition("Uid:\t")[2].split()[:4] for i in swarm.instances()
    ]
    assert len({user[0] for user in users}) == len(users) == 7
    assert all(len(set(user)) == 1 and user[0] != "0" for user in users)
    assert set(owners) == {0}, "dumpable: others of its user could read its memory"


def test_namespaces_are_its_own(swarm: Swarm) -> None:
    everybody = [os.getpid(), *(i["pid"] for i in swarm.instances())]
    for kind in NAMESPACES:
        seen = {os.readlink(f"/proc/{pid}/ns/{kind}") for pid in everybody}
        assert len(seen) == len(everybody), f"a {kind} namespace is shared"


@LAYERS
def test_file_system_is_empty(swarm: Swarm, layer: str) -> None:
    for pid in pids(swarm, layer):
        assert os.listdir(f"/proc/{pid}/root") == []
        (mount,) = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        assert " - tmpfs " in mount and set(mount.split()[5].split(",")) >= {"ro", "nosuid", "nodev", "noexec"}


@LAYERS
def test_only_tcp_has_an_interface(swarm: Swarm, layer: str) -> None:
    for pid in pids(swarm, layer):
        shown = subprocess.run(
            ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-j", "link"], capture_output=True, check=True
        )
        names = {link["ifname"] for link in json.loads(shown.stdout)}
        assert names - {"lo"} == ({"eth0"} if layer == "tcp" else set())


@LAYERS
def test_memory_is_never_both_written_and_executed(swarm: Swarm, layer: str) -> None:
    for pid in pids(swarm, layer):
        flags = [line.split()[1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
        assert not [flag for flag in flags if "w" in flag and "x" in flag]
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert re.search(r"Max core file size +0 +0 ", limits)
        assert re.search(r"Max processes +1 +1 ", limits)


# ---- the key


def test_private_key_is_in_tls_instances_only(swarm: Swarm) -> None:
    """Of all processes but the two that hand it out. Edge and control memory is part of what is searched."""
    holders = {pid for pid, argv in processes_of(swarm.run_dir).items() if "pipeline." in argv}
    searched = set(processes_of(swarm.run_dir)) - holders
    assert len(searched) == 8, "seven instances and the router"
    assert {pid for pid in searched if holds_key(pid, swarm)} == set(pids(swarm, "tls"))


def pool_key(swarm: Swarm) -> bytes:
    """The key that seals connections which move between tls instances, from the holder's memory."""
    with HolderClient(swarm.run_dir) as holder:
        (fd,) = holder.fd_get(keys.TLS_SECRETS)
    try:
        return bytes(pickle.loads(os.pread(fd, os.fstat(fd).st_size, 0))[2])
    finally:
        os.close(fd)


def test_keys_of_connections_are_in_tls_instances_only(swarm: Swarm, tmp_path: Path) -> None:
    """The pool's key, which seals what tcp keeps of each connection, and the traffic secrets of a live one."""
    key = pool_key(swarm)
    assert len(key) == 32
    context = tls_context(ssl.TLSVersion.TLSv1_3)
    context.keylog_filename = str(tmp_path / "keys.log")
    holders = {pid for pid, argv in processes_of(swarm.run_dir).items() if "pipeline." in argv}
    searched = set(processes_of(swarm.run_dir)) - holders
    with dial_tls(swarm.lab, context) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(65536)
        log = Path(context.keylog_filename).read_text()
        secrets = [bytes.fromhex(word) for word in re.findall(r"_TRAFFIC_SECRET_0 \w+ (\w+)", log)]
        assert len(secrets) == 2
        needles = {key, *secrets}
        found = {pid: {n for data in memory(pid) for n in needles if n in data} for pid in searched}
    tls = set(pids(swarm, "tls"))
    assert not {pid for pid in searched - tls if found[pid]}
    assert all(key in found[pid] for pid in tls)
    assert {needle for pid in tls for needle in found[pid]} == needles
    for pid in tls:
        assert not any(key in data for data in memory(pid, "sl-control")), "not wiped where it was handed over"


def test_private_key_is_wiped_where_it_was_handed_over(swarm: Swarm) -> None:
    for pid in pids(swarm, "tls"):
        assert not holds_key(pid, swarm, only="sl-control")


def test_private_key_is_in_no_file_of_the_swarm(swarm: Swarm) -> None:
    secrets = needles(swarm)
    files = [
        path for path in swarm.run_dir.rglob("*") if path.is_file() and swarm.run_dir / "bpf" not in path.parents
    ]
    assert files
    assert not [path for path in files if any(secret in path.read_bytes() for secret in secrets)]


def test_sockets_are_for_root_alone(swarm: Swarm) -> None:
    for path in (swarm.run_dir, *swarm.run_dir.rglob("*.sock")):
        assert path.stat().st_uid == 0
        assert not path.stat().st_mode & 0o077, path
