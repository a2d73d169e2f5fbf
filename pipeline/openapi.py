# SPDX-License-Identifier: Apache-2.0
"""The control API described for machines: OpenAPI 3.1, served at /openapi.json. What each route does is in ``api``.

Keys are only ever added to an answer: who reads one ignores those that he does not know. A test holds this description
against the routes and against what a running swarm answers.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from pipeline.policy.model import LayerId, VmState

Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
NUMBER: Schema = {"type": "number"}
COUNT: Schema = {"type": "integer", "minimum": 0}
YES: Schema = {"type": "boolean"}
SHARE: Schema = {"type": "integer", "minimum": 0, "maximum": 1000, "description": "Thousandths."}
VM_ID: Schema = {"type": "integer", "minimum": 1, "maximum": 1023}
LAYER: Schema = {"enum": [layer.label for layer in LayerId if layer]}
STATE: Schema = {"enum": [state.name.lower() for state in VmState]}
COUNTS: Schema = {"type": "object", "additionalProperties": COUNT}
PID: Schema = {"type": ["integer", "null"]}


def _list(of: Schema) -> Schema:
    return {"type": "array", "items": of}


def _object(optional: tuple[str, ...] = (), /, **fields: Schema) -> Schema:
    required = [name for name in fields if name not in optional]
    return {"type": "object", "properties": fields, **({"required": required} if required else {})}


def _said(schema: Schema, words: str) -> Schema:
    return {**schema, "description": words}


CRYPTO = _said(_object(
    kind=_said(TEXT, "software, multi_buffer or device: what is in use now."),
    seal_mbps=_said(_list(COUNT), "10^6 bytes/s of AES-256-GCM in records of 256, 1400 and 16384 bytes."),
    handshakes=_said(COUNT, "Full ones of TLS 1.3 per second, the server's share."), fallbacks=COUNT),
    "What a tls instance measured when it started, on one core.")
INSTANCE = _object(
    ("crypto",), crypto=CRYPTO, vm_id=VM_ID, layers=_list(LAYER), driver=TEXT, state=STATE, pid=PID,
    device=_said(TEXT, "PCI address of the accelerator that it was given; empty: none."),
    load=_said(SHARE, "Busy share of its loop's time, in thousandths."), available_capacity=SHARE,
    hardware_affinity=_said(COUNT, "Bits: what it has and uses."), active_flows=COUNT,
    queue_depth=_said(COUNT, "Entries pending towards it."),
    oldest_ns=_said(COUNT, "Age of the oldest request that is not answered yet; 0: none."),
    requests=COUNT, bytes_in=COUNT, bytes_out=COUNT, busy_ns=COUNT,
    latency=_said(_list(COUNT), "How many answers took 2^n to 2^(n + 1) µs."), counters=COUNTS, error=TEXT)
ROUTE = _object(vm_id=VM_ID, weight=_said(COUNT, "Share of new flows; 0: none."), load=SHARE, state=STATE)
PORT = _object(in_packets=COUNT, in_bytes=COUNT, out_packets=COUNT, out_bytes=COUNT, in_dropped=COUNT,
               out_dropped=COUNT, violations=_said(COUNT, "Of a virtual machine and its virtio-net device."),
               violation=_said(TEXT, "The last one's name."),
               link=_said(TEXT, "waiting, up, quarantine; empty: needs none."))

SCHEMAS: dict[str, Schema] = {
    "Status": _object(
        swarm=_object(name=TEXT, pid=COUNT, run_dir=TEXT, interface=TEXT, up=YES, events=COUNTS),
        instances=_list(INSTANCE),
        layers=_list(_object(layer=LAYER, instances=COUNT, min=COUNT, max=COUNT, active=COUNT,
                             scaled=_said(COUNTS, "Automatic decisions, by direction."))),
        edges=_list(_object(name=TEXT, edge_id=COUNT, bytes=COUNT, hugepages=YES, peers=_list(VM_ID))),
        services=_list(_object(name=TEXT, index=COUNT, addresses=_list(TEXT), protocol=TEXT, port=COUNT,
                               chain=_list(LAYER))),
        routing_table=_object(epoch=COUNT, layers={"type": "object", "additionalProperties": _list(ROUTE)}),
        router=_object(("pid", "counters", "ports"), pid=PID, counters=COUNTS,
                       ports={"type": "object", "additionalProperties": PORT}),
        classifier=COUNTS),
    "Plan": _object(plan=_said(_list(TEXT), "What is done now, in words; the rest follows by itself.")),
    "Events": _object(events=_list(_object(number=COUNT, time=NUMBER, kind=TEXT, text=TEXT,
                                           fields={"type": "object"}))),
    "Trace": _object(events=_list(_object(request_id=COUNT, parent_id=COUNT, time_ns=COUNT, vm_id=VM_ID, layer=LAYER,
                                          point=TEXT, peer_vm=COUNT))),
    "Nothing": _object(),
    "Error": _object(error=TEXT, hint=_said(TEXT, "How to mend it; may be empty."),
                     exit_code=_said(COUNT, "What the command line ends with.")),
}

SINCE: Schema = {"name": "since", "in": "query", "required": False, "schema": COUNT,
                 "description": "Only events with a higher number."}


def _answer(name: str) -> Schema:
    return {"description": name, "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


def _get(summary: str, answer: str, *parameters: Schema) -> Schema:
    return {"summary": summary, "operationId": answer.lower(), "parameters": list(parameters),
            "responses": {"200": _answer(answer), "400": _answer("Error")}}


def _post(name: str, summary: str, answer: str, body: Schema) -> Schema:
    return {"summary": summary, "operationId": name,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
            "responses": {"200": _answer(answer), "400": _answer("Error"), "409": _answer("Error")}}


PATHS: dict[str, dict[str, Schema]] = {
    "/v1/status": {"get": _get("Instances, edges, services, RoutingTable, counters.", "Status")},
    "/v1/events": {"get": _get("What happened, and why.", "Events", SINCE)},
    "/v1/scale": {"post": _post("scale", "Another number of instances of a layer.", "Plan",
                                _object(layer=LAYER, instances=COUNT))},
    "/v1/drain": {"post": _post("drain", "One instance finishes its flows and goes; another takes its place.", "Plan",
                                _object(("force",), vm_id=VM_ID, force=YES))},
    "/v1/assign": {"post": _post("assign", "Another layer for a running instance.", "Plan",
                                 _object(("force",), vm_id=VM_ID, layer=LAYER, force=YES))},
    "/v1/reload": {"post": _post("reload", "Another config file, or the same one read anew.", "Plan",
                                 _object(("file", "dry_run"), file={"type": ["string", "null"]}, dry_run=YES))},
    "/v1/trace": {"get": _get("Events of traced requests.", "Trace"),
                  "post": _post("trace_every", "Trace one request in so many; 0 ends it.", "Nothing",
                                _object(("every",), every=COUNT))},
    "/v1/down": {"post": _post("down", "End the swarm, and then the manager.", "Nothing", _object())},
    "/metrics": {"get": {"summary": "The status for Prometheus.", "operationId": "metrics", "responses": {
        "200": {"description": "Text format 0.0.4.", "content": {"text/plain": {"schema": TEXT}}}}}},
    "/openapi.json": {"get": {"summary": "This description.", "operationId": "openapi", "responses": {
        "200": {"description": "OpenAPI 3.1.", "content": {"application/json": {"schema": {"type": "object"}}}}}}},
}


def document() -> Schema:
    """The whole description."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "swarmline", "version": version("swarmline"),
                 "description": "The manager of one swarm, on the UNIX socket RUN_DIR/api.sock."},
        "servers": [{"url": "http://swarmline", "description": "The host's name does not matter."}],
        "paths": PATHS,
        "components": {"schemas": SCHEMAS},
    }
