# SPDX-License-Identifier: Apache-2.0
"""The manager's face: HTTP and JSON on a UNIX socket. The command line is its first user.

Its owner and, if [swarm] has ``api_group``, the members of that group may open it, and may then do with the swarm what
they like. ``metrics`` in [swarm] serves /metrics alone on a TCP port too.

::

    GET  /v1/status           everything: instances, edges, services, routing_table, counters
    GET  /metrics             the same for Prometheus
    GET  /openapi.json        all this, for machines
    GET  /v1/events?since=N   what happened after event N
    POST /v1/scale            {"layer": "app", "instances": 4}
    POST /v1/drain            {"vm_id": 7, "force": false}
    POST /v1/assign           {"vm_id": 7, "layer": "http", "force": false}; another layer for a running instance
    POST /v1/reload           {"file": "/path", "dry_run": true}; without a file: the one that was last used
    POST /v1/trace            {"every": 1}; 0 ends it
    GET  /v1/trace            events of traced requests
    POST /v1/down             {}; ends the swarm and then the manager

Errors are {"error", "hint", "exit_code"} with status 409 (not in this state) or 400 (not understood).
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from aiohttp import web

from pipeline.errors import ApiError, ConfigError, HostError, SwarmlineError
from pipeline.host import keys
from pipeline.host.access import open_to_group
from pipeline.manager import Manager
from pipeline.metrics import CONTENT_TYPE, metrics
from pipeline.openapi import document
from pipeline.policy.config import parse_config
from pipeline.policy.model import LayerId
from pipeline.status import status

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

FAREWELL = 1.0      # seconds for answers that are under way when the manager ends


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except ApiError as error:
        return _json({"error": str(error), "hint": error.hint, "exit_code": error.exit_code}, 400)
    except SwarmlineError as error:
        return _json({"error": str(error), "hint": error.hint, "exit_code": error.exit_code}, 409)


def _json(value: object, code: int = 200) -> web.Response:
    return web.json_response(value, status=code)


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        value = await request.json()
    except json.JSONDecodeError as error:
        raise ApiError(f"the request's body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ApiError("the request's body is not a JSON object")
    return value


def _integer(body: dict[str, Any], key: str, default: int | None = None) -> int:
    value = body.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool):
        raise ApiError(f"{key!r} is {value!r}, a whole number is needed")
    return value


def _layer(body: dict[str, Any]) -> LayerId:
    label = str(body.get("layer", ""))
    layer = next((known for known in LayerId if known and known.label == label), None)
    if layer is None:
        raise ApiError(f"there is no layer {label!r}", hint="layers are: tcp, tls, http, app")
    return layer


class _Api:
    def __init__(self, manager: Manager) -> None:
        self._manager = manager

    async def status(self, _: web.Request) -> web.Response:
        return _json(status(self._manager))

    async def metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=metrics(status(self._manager)), headers={"Content-Type": CONTENT_TYPE})

    async def openapi(self, _: web.Request) -> web.Response:
        return _json(document())

    async def events(self, request: web.Request) -> web.Response:
        since = request.query.get("since", "0")
        if not since.isdecimal():
            raise ApiError(f"since is {since!r}, the number of an event is needed")
        return _json({"events": [asdict(e) for e in self._manager.events.since(int(since))]})

    async def scale(self, request: web.Request) -> web.Response:
        body = await _body(request)
        return _json({"plan": await self._manager.scale(_layer(body), _integer(body, "instances"))})

    async def drain(self, request: web.Request) -> web.Response:
        body = await _body(request)
        return _json({"plan": await self._manager.drain(_integer(body, "vm_id"), force=bool(body.get("force", False)))})

    async def assign(self, request: web.Request) -> web.Response:
        body = await _body(request)
        return _json({"plan": await self._manager.assign(_integer(body, "vm_id"), _layer(body),
                                                         force=bool(body.get("force", False)))})

    async def reload(self, request: web.Request) -> web.Response:
        body = await _body(request)
        file = Path(str(body.get("file") or self._manager.config.file))
        return _json({"plan": await reload_file(self._manager, file, dry_run=bool(body.get("dry_run", False)))})

    async def trace_start(self, request: web.Request) -> web.Response:
        self._manager.trace(max(_integer(await _body(request), "every", 1), 0))
        return _json({})

    async def trace(self, _: web.Request) -> web.Response:
        return _json({"events": [{**asdict(e), "layer": e.layer.label} for e in self._manager.traces]})

    async def down(self, _: web.Request) -> web.Response:
        await self._manager.down()
        return _json({})

    def application(self) -> web.Application:
        application = web.Application(middlewares=[_errors])
        application.add_routes([
            web.get("/v1/status", self.status), web.get("/metrics", self.metrics), web.get("/v1/events", self.events),
            web.get("/openapi.json", self.openapi),
            web.post("/v1/scale", self.scale), web.post("/v1/drain", self.drain),
            web.post("/v1/assign", self.assign), web.post("/v1/reload", self.reload),
            web.post("/v1/trace", self.trace_start), web.get("/v1/trace", self.trace),
            web.post("/v1/down", self.down)])
        return application

    def metrics_alone(self) -> web.Application:
        application = web.Application(middlewares=[_errors])
        application.add_routes([web.get("/metrics", self.metrics)])
        return application


def read_config(file: Path) -> str:
    """The text of a config file."""
    try:
        return file.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read it: {error.strerror}", file=str(file)) from error


async def reload_file(manager: Manager, file: Path, *, dry_run: bool = False) -> list[str]:
    """Validates the file, then applies it (or only says what it would do). It then counts for later managers too."""
    text = read_config(file)
    done = await manager.reload(parse_config(text, str(file)), dry_run=dry_run)
    if not dry_run:
        manager.actor.held.holder.blob_put(keys.CONFIG, {"file": str(file), "text": text})
    return done


@asynccontextmanager
async def serve_api(manager: Manager, path: Path) -> AsyncIterator[None]:
    """Serves on the socket ``path`` as long as the context lasts, and metrics on the port of the config."""
    api = _Api(manager)
    runner = web.AppRunner(api.application(), access_log=None, shutdown_timeout=FAREWELL)
    scraped = web.AppRunner(api.metrics_alone(), access_log=None, shutdown_timeout=FAREWELL)
    path.unlink(missing_ok=True)
    try:
        await _serve_socket(runner, path, manager.config.api_group)
        if manager.config.metrics:
            await _serve_metrics(scraped, *manager.config.metrics)
        yield
    finally:
        await runner.cleanup()
        await scraped.cleanup()
        path.unlink(missing_ok=True)


async def _serve_socket(runner: web.AppRunner, path: Path, group: str) -> None:
    """Mode 0600, or 0660 for a group."""
    await runner.setup()
    before = os.umask(0o177)
    try:
        await web.UnixSite(runner, str(path)).start()
    finally:
        os.umask(before)
    if group:
        open_to_group(path, group)


async def _serve_metrics(runner: web.AppRunner, address: str, port: int) -> None:
    await runner.setup()
    try:
        await web.TCPSite(runner, address, port).start()
    except OSError as error:
        raise HostError(f"cannot serve metrics at {address} port {port}: {error.strerror}",
                        hint="take another address in `metrics` of [swarm]") from error
