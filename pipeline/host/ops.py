# SPDX-License-Identifier: Apache-2.0
"""What the holder can be asked, and what it keeps: one method per op.

=================  ========================  =================================================================
op                 fields                    reply; descriptors
=================  ========================  =================================================================
hello                                        version, pid, run_dir, manager {state, pid, starts, status}
edge.create        name, edge_id, len        name, edge_id, len, huge; memfd ``sl-edge-NAME``, never resized: a power
                                             of two long, as a VM's device must be; only len bytes are paid for
edge.get           edge_id                   the same
edge.remove        edge_id
edge.list                                    edges
instance.add       vm_id, retracts           vm_id, socket, state, connected, peers, bells (who rings it
                                             by which of its doorbells); control region, its doorbell
                                             for the manager, the manager's doorbell for it
instance.get       vm_id                     the same
instance.peers     vm_id, peers              exactly those that it may ring, besides the manager
instance.silence   vm_id, peer               a virtual machine can not ring that peer any more
instance.remove    vm_id
instance.list                                instances
blob.put           key, value (any JSON)     kept in memory and in DIR/state.json: for ``down`` after a crash
blob.get           key                       value, null if there is none
fd.put             key; 1 ... 8 descriptors  replaces what key had
fd.get             key                       the descriptors
fd.remove          key
fd.list                                      keys
manager.start      argv, log                 pid
manager.stop                                 SIGTERM, and no restart
process.exit       pid                       exit status or -signal of a reaped orphan, null if unknown
subscribe                                    from now on events come on this connection, between replies
shutdown                                     ends the holder, not the instances, and restarts no manager
=================  ========================  =================================================================

``subscribe`` and ``shutdown`` are the loop's own (``holder``).
"""

from __future__ import annotations

import json
import mmap
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.host import wire
from pipeline.host.ivshmem import VM_MAX, Instance, IvshmemServer
from pipeline.host.memory import power_of_two, shared_memfd
from pipeline.host.supervisor import Supervisor

VERSION = 1
NOTES = "state.json"
FDS_PER_KEY = 8
EDGE_LEN_MAX = 4 << 30

Fds = list[int]
Reply = tuple[wire.Message, Fds]    # the descriptors remain the holder's


class Refused(Exception):
    """A request that can not be carried out; the text goes to the client."""


@dataclass
class Edge:
    """The memory of one edge."""

    name: str
    edge_id: int
    len: int
    huge: bool
    fd: int

    def facts(self) -> wire.Message:
        facts = asdict(self)
        del facts["fd"]
        return facts


class Ops:
    """Carries out requests. Raises Refused, ValueError, KeyError, TypeError and OSError for those that can
    not be."""

    def __init__(self, run_dir: Path, ivshmem: IvshmemServer, supervisor: Supervisor) -> None:
        self._run_dir = run_dir
        self._ivshmem = ivshmem
        self._supervisor = supervisor
        self._edges: dict[int, Edge] = {}
        self._fds: dict[str, Fds] = {}
        self._blobs: dict[str, Any] = {}
        self.exits: OrderedDict[int, int] = OrderedDict()    # pid -> status, oldest first
        self._ops: dict[str, Callable[[wire.Message, Fds], Reply]] = {
            name.removeprefix("_op_").replace("_", "."): getattr(self, name)
            for name in dir(self) if name.startswith("_op_")}

    def carry_out(self, request: wire.Message, fds: Fds) -> Reply:
        """The reply. Descriptors of the request that are kept are taken out of ``fds``."""
        name = request.get("op")
        if not isinstance(name, str) or name not in self._ops:
            raise Refused(f"no such op: {name}")
        return self._ops[name](request, fds)

    def _op_hello(self, _request: wire.Message, _fds: Fds) -> Reply:
        s = self._supervisor
        return {"version": VERSION, "pid": os.getpid(), "run_dir": str(self._run_dir),
                "manager": {"state": s.state, "pid": s.pid, "starts": s.starts, "status": s.status}}, []

    def _op_edge_create(self, request: wire.Message, _fds: Fds) -> Reply:
        name, edge_id, length = str(request["name"]), int(request["edge_id"]), int(request["len"])
        if edge_id in self._edges:
            raise Refused(f"edge {edge_id} exists")
        if not 0 < length < EDGE_LEN_MAX or length % mmap.PAGESIZE:
            raise Refused(f"no length of an edge: {length}")
        if not name or len(name) > 64:
            raise Refused(f"no name of an edge: {name!r}")
        fd, huge = shared_memfd(f"sl-edge-{name}", length, room=power_of_two(length))
        self._edges[edge_id] = edge = Edge(name, edge_id, length, huge, fd)
        return edge.facts(), [fd]

    def _edge(self, request: wire.Message) -> Edge:
        edge = self._edges.get(request["edge_id"])
        if not edge:
            raise Refused(f"no edge {request['edge_id']}")
        return edge

    def _op_edge_get(self, request: wire.Message, _fds: Fds) -> Reply:
        edge = self._edge(request)
        return edge.facts(), [edge.fd]

    def _op_edge_remove(self, request: wire.Message, _fds: Fds) -> Reply:
        edge = self._edge(request)
        del self._edges[edge.edge_id]
        os.close(edge.fd)
        return {}, []

    def _op_edge_list(self, _request: wire.Message, _fds: Fds) -> Reply:
        return {"edges": [edge.facts() for edge in self._edges.values()]}, []

    def _op_instance_add(self, request: wire.Message, _fds: Fds) -> Reply:
        instance = self._ivshmem.add(int(request["vm_id"]), retracts=bool(request.get("retracts", True)))
        return self._facts(instance), instance.fds[:3]

    def _instance(self, request: wire.Message) -> Instance:
        instance = self._ivshmem.instances.get(request["vm_id"])
        if not instance:
            raise Refused(f"no instance {request['vm_id']}")
        return instance

    def _facts(self, instance: Instance) -> wire.Message:
        return {"vm_id": instance.vm_id, "socket": str(instance.path), "state": instance.state,
                "connected": instance.state == "connected", "peers": sorted(instance.wanted),
                "bells": sorted(instance.bells_of.items())}

    def _op_instance_get(self, request: wire.Message, _fds: Fds) -> Reply:
        instance = self._instance(request)
        return self._facts(instance), instance.fds[:3]

    def _op_instance_peers(self, request: wire.Message, _fds: Fds) -> Reply:
        peers = request["peers"]
        if not isinstance(peers, list) or len(peers) > VM_MAX or not all(type(peer) is int for peer in peers):
            raise Refused("peers is no list of VMIDs")
        self._ivshmem.peers_set(self._instance(request).vm_id, peers)
        return {}, []

    def _op_instance_silence(self, request: wire.Message, _fds: Fds) -> Reply:
        self._ivshmem.silence(self._instance(request).vm_id, int(request["peer"]))
        return {}, []

    def _op_instance_remove(self, request: wire.Message, _fds: Fds) -> Reply:
        self._ivshmem.remove(self._instance(request).vm_id)
        return {}, []

    def _op_instance_list(self, _request: wire.Message, _fds: Fds) -> Reply:
        return {"instances": [self._facts(i) for i in self._ivshmem.instances.values()]}, []

    def _op_blob_put(self, request: wire.Message, _fds: Fds) -> Reply:
        self._blobs[str(request["key"])] = request["value"]
        temporary = self._run_dir / f"{NOTES}.new"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600), "w") as file:
            json.dump(self._blobs, file)
        temporary.rename(self._run_dir / NOTES)
        return {}, []

    def _op_blob_get(self, request: wire.Message, _fds: Fds) -> Reply:
        return {"value": self._blobs.get(str(request["key"]))}, []

    def _op_fd_put(self, request: wire.Message, fds: Fds) -> Reply:
        key = str(request["key"])
        if not 1 <= len(fds) <= FDS_PER_KEY or not 1 <= len(key) <= 64:
            raise Refused(f"1 to {FDS_PER_KEY} descriptors under a key of 1 to 64 characters")
        wire.close_all(self._fds.pop(key, ()))
        self._fds[key] = fds[:]
        fds.clear()
        return {}, []

    def _op_fd_get(self, request: wire.Message, _fds: Fds) -> Reply:
        key = str(request["key"])
        if key not in self._fds:
            raise Refused(f"no descriptors under {key!r}")
        return {}, self._fds[key]

    def _op_fd_remove(self, request: wire.Message, _fds: Fds) -> Reply:
        wire.close_all(self._fds.pop(str(request["key"]), ()))
        return {}, []

    def _op_fd_list(self, _request: wire.Message, _fds: Fds) -> Reply:
        return {"keys": sorted(self._fds)}, []

    def _op_manager_start(self, request: wire.Message, _fds: Fds) -> Reply:
        argv = request["argv"]
        if not isinstance(argv, list) or not argv or not all(isinstance(word, str) for word in argv):
            raise Refused("argv is no command line")
        self._supervisor.start(argv, Path(str(request["log"])))
        return {"pid": self._supervisor.pid}, []

    def _op_manager_stop(self, _request: wire.Message, _fds: Fds) -> Reply:
        self._supervisor.stop()
        return {}, []

    def _op_process_exit(self, request: wire.Message, _fds: Fds) -> Reply:
        return {"status": self.exits.get(request["pid"])}, []
