# SPDX-License-Identifier: Apache-2.0
"""The manager's API from the command line's side: HTTP over its UNIX socket, with the standard library."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any

from pipeline.errors import ApiError, NotRunning
from pipeline.host.access import group_name

TIMEOUT = 60.0      # seconds: `down` answers when all has ended


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("swarmline", timeout=TIMEOUT)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _who_may(run_dir: Path) -> str:
    try:
        gid = run_dir.stat().st_gid
    except OSError:
        gid = 0
    return f"run it as root or as a member of the group {group_name(gid)}" if gid else "run it as root"


def call(run_dir: Path, method: str, path: str, body: object | None = None) -> dict[str, Any]:
    """One request. Raises NotRunning if there is no manager, ApiError if it says no or breaks off."""
    connection = _UnixConnection(run_dir / "api.sock")
    try:
        connection.request(method, path, None if body is None else json.dumps(body),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        value = json.loads(response.read())
    except (FileNotFoundError, ConnectionRefusedError):
        raise NotRunning(f"no swarm runs in {run_dir}", hint="start one with `swarmline up FILE`") from None
    except PermissionError:
        raise ApiError(f"may not talk to the manager in {run_dir}", hint=_who_may(run_dir)) from None
    except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
        raise ApiError(f"the manager did not answer: {error}", hint=f"its log is {run_dir}/log/manager.log") from error
    finally:
        connection.close()
    if response.status != http.client.OK:
        raise ApiError(value["error"], hint=value.get("hint", ""), exit_code=value.get("exit_code", 1))
    return dict(value)
