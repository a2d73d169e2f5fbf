# SPDX-License-Identifier: Apache-2.0
"""The manager's faces: what a running swarm says of itself, and to whom."""

import grp
import os
import socket
import stat
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from urllib.request import urlopen

import pytest
from jsonschema import Draft202012Validator
from support.lab import Lab
from system.clients import dial, dial_tls
from system.swarm_rig import Swarm, eventually, swarm_made

from pipeline.cli.client import call
from pipeline.errors import ApiError

GROUP, NOBODY = "daemon", 65534
Schema = dict[str, Any]

pytestmark = [pytest.mark.netns, pytest.mark.bpf]


@pytest.fixture(scope="module")
def swarm(module_lab: Lab) -> Iterator[Swarm]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with swarm_made(module_lab, {"swarm": {"api_group": GROUP, "metrics": f"127.0.0.1:{port}"}}) as made:
        yield made


# ---- the description


@pytest.fixture(scope="module")
def description(swarm: Swarm) -> Schema:
    return call(swarm.run_dir, "GET", "/openapi.json")


def strict(schema: Any) -> Any:
    """The same, with nothing allowed that is not described."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    done = {key: strict(value) for key, value in schema.items()}
    if "properties" in schema:
        done["additionalProperties"] = False
    return done


def check(description: Schema, name: str, value: object) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": strict(description["components"])}
    problems = [f"{e.json_path}: {e.message}" for e in Draft202012Validator(schema).iter_errors(value)]
    assert not problems, "\n".join(problems)


def test_answers_are_as_described(swarm: Swarm, description: Schema) -> None:
    ask = partial(call, swarm.run_dir)
    check(description, "Nothing", ask("POST", "/v1/trace", {"every": 1}))
    with dial_tls(swarm.lab) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
    swarm.published()
    events = eventually(lambda: ask("GET", "/v1/trace")["events"] and ask("GET", "/v1/trace"), "traced requests")
    check(description, "Trace", events)
    ask("POST", "/v1/trace", {"every": 0})
    check(description, "Status", ask("GET", "/v1/status"))
    check(description, "Events", ask("GET", "/v1/events?since=3"))
    check(description, "Plan", ask("POST", "/v1/scale", {"layer": "app", "instances": 2}))
    check(description, "Plan", ask("POST", "/v1/reload", {"dry_run": True}))
    victim = swarm.instances("app")[0]["vm_id"]
    check(description, "Plan", ask("POST", "/v1/drain", {"vm_id": victim}))
    eventually(lambda: victim not in swarm.pids(), "it has left")
    swarm.eventually_active("app", 2)


def test_a_check_can_fail(description: Schema) -> None:
    for wrong in ({"plan": [1]}, {}, {"plan": [], "more": 1}):
        with pytest.raises(AssertionError):
            check(description, "Plan", wrong)


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/v1/scale", {"layer": "app"}, 400),
        ("POST", "/v1/drain", {"vm_id": 999}, 409),
        ("GET", "/v1/events?since=x", None, 400),
    ],
)
def test_refusals_are_as_described(
    swarm: Swarm, description: Schema, method: str, path: str, body: object, code: int
) -> None:
    with pytest.raises(ApiError) as refused:
        call(swarm.run_dir, method, path, body)
    assert refused.value.exit_code == (7 if code == 400 else 4)
    assert str(code) in description["paths"][path.partition("?")[0]][method.lower()]["responses"]


# ---- who may


def as_nobody(groups: list[int], act: Callable[[], object]) -> str:
    """What ``act`` says (or its error), done by a user without rights in these groups."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups(groups)
            os.setgid(NOBODY)
            os.setuid(NOBODY)
            said = str(act())
        except ApiError as error:
            said = error.explain()
        except BaseException:
            said = traceback.format_exc()
        os.write(writer, said.encode()[:60000])
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def test_members_of_the_group_may(swarm: Swarm) -> None:
    gid = grp.getgrnam(GROUP).gr_gid
    found = (swarm.run_dir / "api.sock").stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (0, gid, 0o660)
    said = as_nobody([gid], lambda: call(swarm.run_dir, "GET", "/v1/status")["swarm"]["name"])
    assert said == "test"


def test_others_may_not(swarm: Swarm) -> None:
    said = as_nobody([], lambda: call(swarm.run_dir, "GET", "/v1/status"))
    assert said == (f"may not talk to the manager in {swarm.run_dir}: "
                    f"run it as root or as a member of the group {GROUP}")


def test_the_group_gets_nothing_else(swarm: Swarm) -> None:
    gid = grp.getgrnam(GROUP).gr_gid

    def opened() -> list[str]:
        found = []
        for name in ("holder.sock", "state.json", "log", "ivshmem", "bpf", "log/manager.log", "."):
            path = swarm.run_dir / name
            if os.access(path, os.R_OK) or os.access(path, os.W_OK):
                found.append(name)
        return found

    assert as_nobody([gid], opened) == "[]"


def test_a_group_that_is_not(swarm: Swarm) -> None:
    text = swarm.config.read_text()
    swarm.config.write_text(text.replace(f'"{GROUP}"', '"no-such-group"'))
    try:
        for command in (("up", str(swarm.config)), ("reload",)):
            done = swarm.command(*command, ok=False)
            assert done.returncode and done.stderr.count("\n") == 1
            assert "no-such-group" in done.stderr or "api_group cannot change" in done.stderr
    finally:
        swarm.config.write_text(text)


# ---- numbers


def oldest(swarm: Swarm, layer: str) -> float:
    """Age of the oldest request of a layer, in seconds."""
    return max(i["oldest_ns"] for i in swarm.instances(layer)) / 1e9


def older(swarm: Swarm, layer: str) -> bool:
    return oldest(swarm, layer) > 0.3


def nothing_owed(swarm: Swarm, layer: str) -> bool:
    return oldest(swarm, layer) == 0


def scrape(swarm: Swarm) -> dict[str, float]:
    """All metrics by name and labels, as Prometheus gets them."""
    address = next(line for line in swarm.config.read_text().splitlines() if line.startswith("metrics")).split('"')[1]
    with urlopen(f"http://{address}/metrics", timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
        lines = answer.read().decode().splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_metrics_of_layers_instances_and_edges(swarm: Swarm) -> None:
    found = scrape(swarm)
    for name in ("load_ratio", "active_flows", "queue_depth", "requests_total", "busy_seconds_total", "route_weight"):
        assert {key for key in found if key.startswith(f'swarmline_{name}{{layer="app"')}, name
    assert found['swarmline_instances{layer="app",which="active"}'] == 2
    assert found['swarmline_edge_peers{edge="http-app"}'] == 4
    assert found['swarmline_scale_decisions_total{direction="up",layer="app"}'] == 0
    assert any(key.startswith("swarmline_latency_seconds_bucket") for key in found)
    assert any(key.startswith("swarmline_router_frames_total") for key in found)


def test_age_of_the_oldest_request(swarm: Swarm) -> None:
    """A body that does not come: the request grows old at http and app, whatever else they answer meanwhile."""
    with dial(swarm.lab) as sock, dial(swarm.lab) as other:
        sock.sendall(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab")
        for layer in ("http", "app"):
            eventually(partial(older, swarm, layer), f"{layer} says how old it is")
        other.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert other.recv(100).startswith(b"HTTP/1.1 200 ")
        assert oldest(swarm, "app") > 0.3
        shown = {k: v for k, v in scrape(swarm).items() if k.startswith('swarmline_oldest_request_seconds{layer="app"')}
        assert max(shown.values()) > 0.3
        sock.sendall(b"cde")
        assert sock.recv(100).startswith(b"HTTP/1.1 200 ")
        for layer in ("tcp", "http", "app"):
            eventually(partial(nothing_owed, swarm, layer), f"{layer} has none any more")
