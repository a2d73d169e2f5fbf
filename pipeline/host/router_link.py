# SPDX-License-Identifier: Apache-2.0
"""The conversation with a router: one struct sl_rtr_request, one struct sl_rtr_reply."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline._native import ffi, lib
from pipeline.errors import NoRouter, RouterError, RouterLost

ANSWER_TIMEOUT = 2.0           # seconds


@dataclass(frozen=True)
class RouterFacts:
    """What the router says of itself with every answer."""

    pid: int
    start_ns: int
    ports: int
    vips: int
    nets: int
    mtu: int
    queues: int
    mac: bytes


class RouterLink:
    """Calls are short and block: an answer takes some 10 µs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sock: socket.socket | None = None
        self._seq = 0

    @property
    def up(self) -> bool:
        return self._sock is not None

    def open(self) -> None:
        """Raises NoRouter."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(ANSWER_TIMEOUT)
        try:
            sock.connect(str(self._path))
        except OSError as error:
            sock.close()
            raise NoRouter(f"no router at {self._path}: {error.strerror or error}") from error
        self._sock = sock

    def close(self) -> None:
        """Hangs up; the router goes on."""
        if self._sock:
            self._sock.close()
            self._sock = None

    def exchange(self, kind: int, fd: int | None = None, tolerate: int = 0, **fields: Any) -> RouterFacts:
        """One request and its answer. Raises RouterError if it is refused, but not for the errno ``tolerate``;
        RouterLost, and hangs up, if there is no proper answer.
        """
        self._seq = (self._seq + 1) & 0xFFFF_FFFF
        request = ffi.new("struct sl_rtr_request *", {
            "version": lib.SL_ABI_VERSION, "type": kind, "seq": self._seq, **fields})
        reply = self._answer(bytes(ffi.buffer(request)), fd)
        if reply.seq != self._seq or reply.version != lib.SL_ABI_VERSION:
            self.close()
            raise RouterLost("the router is out of step")
        if reply.status and -reply.status != tolerate:
            name = ffi.typeof("enum sl_rtr_type").elements[kind].removeprefix("SL_RTR_")
            raise RouterError(f"the router refused {name}: {os.strerror(-reply.status)}")
        return RouterFacts(reply.pid, reply.start_ns, reply.nb_port, reply.nb_vip, reply.nb_net, reply.mtu,
                           reply.nb_queue, bytes(ffi.buffer(reply.mac)))

    def _answer(self, request: bytes, fd: int | None) -> Any:
        assert self._sock
        reply = ffi.new("struct sl_rtr_reply *")
        try:
            socket.send_fds(self._sock, [request], [] if fd is None else [fd])
            data = self._sock.recv(256)
        except OSError as error:
            self.close()
            raise RouterLost(f"the router does not answer: {error}") from error
        if len(data) != ffi.sizeof(reply[0]):
            self.close()
            raise RouterLost("the router hung up" if not data else "the router is of another version",
                             hint="it is started again by the manager; see its log")
        ffi.memmove(reply, data, len(data))
        return reply
