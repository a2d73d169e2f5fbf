# SPDX-License-Identifier: Apache-2.0
"""The holder's control socket: what is kept, what is refused."""

import json
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from unit.holder_rig import PATIENCE, Qemu, nb_fds, same_file

from pipeline.errors import HolderError
from pipeline.host import wire
from pipeline.host.holder_client import HolderClient


def test_descriptors_and_notes_are_kept(holder: HolderClient, run_dir: Path) -> None:
    edge = holder.edge_create("http-app", 0x304, 1 << 21)
    reader, writer = os.pipe()
    holder.fd_put("tap-1", [reader])
    big = {"text": "ä" * 100_000, "list": list(range(1000))}
    holder.blob_put("swarm", big)
    holder.close()                                         # as a manager that dies
    again = holder.edge_get(0x304)
    assert same_file(again.fd, edge.fd)
    assert (again.name, again.len, holder.edge_ids()) == ("http-app", 1 << 21, [0x304])
    (kept,) = holder.fd_get("tap-1")
    os.write(writer, b"x")
    assert os.read(kept, 9) == b"x"
    assert holder.blob_get("swarm") == big
    assert json.loads((run_dir / "state.json").read_text())["swarm"] == big
    assert holder.blob_get("nothing") is None
    holder.fd_remove("tap-1")
    holder.edge_remove(0x304)
    assert (holder.fd_list(), holder.edge_list()) == ([], [])
    with pytest.raises(HolderError, match="no descriptors"):
        holder.fd_get("tap-1")
    for fd in (edge.fd, again.fd, reader, writer, kept):
        os.close(fd)


def test_nothing_leaks(holder: HolderClient, connect: Callable[[int], Qemu]) -> None:
    def round_trip(vm_id: int) -> None:
        added = holder.instance_add(vm_id)
        qemu = Qemu(added.facts.socket)
        holder.fd_put("x", [added.control, added.doorbell])
        holder.fd_put("x", [added.control])
        holder.blob_put("b", "x" * 50_000)
        os.close(holder.edge_create("tcp-tls", 1, 4096).fd)
        wire.close_all(holder.fd_get("x"))
        qemu.greeting()
        qemu.close()
        added.close()
        holder.instance_remove(vm_id)
        holder.edge_remove(1)
        holder.fd_remove("x")

    round_trip(1)
    before, ours = nb_fds(holder), len(os.listdir("/proc/self/fd"))
    for vm_id in range(1, 50):
        round_trip(vm_id)
    assert nb_fds(holder) == before
    assert len(os.listdir("/proc/self/fd")) == ours


@pytest.mark.parametrize("packet", [
    b"{", b"[]", b"null", b"\xff\xfe", b'{"long": 5}', b'{"long": -1}', b"[" * 20_000, b"x" * (wire.PACKET_MAX + 2)])
def test_broken_packet_ends_that_connection(holder: HolderClient, run_dir: Path, packet: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bad:
        bad.settimeout(PATIENCE)
        bad.connect(str(run_dir / "holder.sock"))
        bad.send(packet)
        with suppress(ConnectionResetError):
            assert bad.recv(100) == b""
    assert holder.hello().pid


@pytest.mark.parametrize("request_", [
    {}, {"op": 5}, {"op": "nonsense"}, {"op": "carry_out"}, {"op": "edge.get"}, {"op": "edge.get", "edge_id": []},
    {"op": "edge.create", "name": "x", "edge_id": 1, "len": 0}, {"op": "edge.create", "name": "x", "edge_id": 1,
     "len": 1 << 40}, {"op": "edge.create", "name": "", "edge_id": 1, "len": 4096},
    {"op": "instance.add", "vm_id": 0}, {"op": "instance.add", "vm_id": 1024}, {"op": "instance.add", "vm_id": None},
    {"op": "instance.add", "vm_id": 1e999}, {"op": "instance.peers", "vm_id": 9, "peers": []},
    {"op": "instance.peers", "vm_id": 1, "peers": "all"}, {"op": "fd.put", "key": "x"}, {"op": "manager.start"},
    {"op": "manager.start", "argv": [], "log": "/dev/null"},
    {"op": "manager.start", "argv": ["/nonexistent/program"], "log": "/dev/null"},
    {"op": "process.exit", "pid": {}}])
def test_bad_request_is_refused(holder: HolderClient, run_dir: Path, request_: dict[str, Any]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(run_dir / "holder.sock"))
        for _ in range(2):
            sock.send(json.dumps(request_).encode())
            reply = json.loads(sock.recv(10_000))
            assert reply["ok"] is False
            assert reply["error"]
    assert holder.instance_list() == []


def test_client_that_never_reads(holder: HolderClient, run_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as lazy:
        lazy.connect(str(run_dir / "holder.sock"))
        lazy.settimeout(PATIENCE)
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # noqa: PT012 - any of the sends
            while True:
                lazy.send(b'{"op":"hello"}')
                holder.hello()


def test_many_clients(holder: HolderClient, run_dir: Path) -> None:
    clients = [HolderClient(run_dir) for _ in range(20)]
    for n, client in enumerate(clients):
        client.blob_put(str(n), n)
    assert [clients[-1 - n].blob_get(str(n)) for n in range(20)] == list(range(20))
    for client in clients:
        client.close()


def test_socket_is_private(holder: HolderClient, run_dir: Path) -> None:
    assert (run_dir / "holder.sock").stat().st_mode & 0o777 == 0o600
    assert (run_dir / "ivshmem").stat().st_mode & 0o777 == 0o700
