# SPDX-License-Identifier: Apache-2.0
"""Messages between the holder and its clients: one JSON object per packet, file descriptors beside it.

A packet of a UNIX socket must fit into the socket's buffer, in physically contiguous memory. A longer object
therefore travels in a memfd that comes as the last descriptor, announced by ``{"long": LENGTH}``.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

PACKET_MAX = 32 << 10     # bytes of JSON in a packet
LONG_MAX = 64 << 20       # bytes of JSON in a memfd
FDS_MAX = 32              # descriptors beside one packet; the kernel's own limit is 253


class WireError(Exception):
    """The other side sent something that is no message of this protocol."""


class Stuck(OSError):
    """The other side does not read: its queue is full."""


def close_all(fds: Sequence[int]) -> None:
    """Closes descriptors that nobody took."""
    for fd in fds:
        os.close(fd)


class Outbox:
    """What waits to be sent on a non-blocking socket, packets or stream. A reader that never reads costs
    ``limit`` entries, no more.

    ``put`` raises Stuck when the queue is full, or the OSError of a connection that is gone. The caller
    watches the socket for writing while something is pending, and calls ``flush`` then.
    """

    def __init__(self, sock: socket.socket, limit: int) -> None:
        self._sock = sock
        self._limit = limit
        self._queue: deque[tuple[bytes, list[int]]] = deque()

    @property
    def pending(self) -> bool:
        return bool(self._queue)

    def put(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends now what can be sent now. The descriptors remain the caller's; those that must wait are
        duplicated."""
        if self._queue or (rest := self._send(data, fds)) == data:
            if len(self._queue) >= self._limit:
                raise Stuck(f"{len(self._queue)} messages wait for a reader")
            self._queue.append((data, [os.dup(fd) for fd in fds]))
        elif rest:
            self._queue.append((rest, []))    # the descriptors went with the first byte

    def flush(self) -> None:
        """Sends what can be sent now."""
        while self._queue:
            data, fds = self._queue[0]
            rest = self._send(data, fds)
            if rest == data:
                return
            self._queue.popleft()
            close_all(fds)
            if rest:
                self._queue.appendleft((rest, []))

    def close(self) -> None:
        """Forgets what waits."""
        while self._queue:
            close_all(self._queue.popleft()[1])

    def _send(self, data: bytes, fds: Sequence[int]) -> bytes:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            sent = self._sock.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return data
        return data[sent:]


def encode(message: Message) -> tuple[bytes, int | None]:
    """The packet, and the memfd that must go with it as its last descriptor (the caller closes it after
    sending)."""
    data = json.dumps(message, separators=(",", ":")).encode()
    if len(data) <= PACKET_MAX:
        return data, None
    fd = os.memfd_create("sl-message", os.MFD_CLOEXEC)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return b'{"long":%d}' % len(data), fd


def decode(data: bytes, fds: list[int]) -> Message:
    """The message of a packet. Takes its memfd, if there is one, out of ``fds``. Raises WireError."""
    message = _object(data)
    if "long" not in message:
        return message
    length = message["long"]
    if type(length) is not int or not 0 < length <= LONG_MAX or not fds:
        raise WireError("a long message without its memory")
    fd = fds.pop()
    try:
        return _object(os.pread(fd, length, 0))
    except OSError as error:
        raise WireError(f"a long message that can not be read: {error}") from error
    finally:
        os.close(fd)


def receive(sock: socket.socket) -> tuple[bytes, list[int]] | None:
    """The next packet and its descriptors; None at the end. Raises WireError for a cut one, and what recvmsg
    raises."""
    fds = array.array("i")
    room = socket.CMSG_SPACE(FDS_MAX * fds.itemsize)
    data, ancillary, flags, _ = sock.recvmsg(PACKET_MAX + 1, room, socket.MSG_CMSG_CLOEXEC)
    for level, kind, payload in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(payload[: len(payload) // fds.itemsize * fds.itemsize])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        close_all(fds)
        raise WireError("a packet that is too long, or has too many descriptors")
    if not data:
        close_all(fds)
        return None
    return data, list(fds)


def _object(data: bytes) -> Message:
    try:
        message = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WireError(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise WireError("not a JSON object")
    return message
