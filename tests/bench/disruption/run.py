# SPDX-License-Identifier: Apache-2.0
"""One run: a system that serves, clients around it, events of one kind after the other, and the checker's word on
each kind."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bench.disruption.checker import Limits, Tally, check
from bench.disruption.events import AGE, ROUNDS, SWARMLINE, Skipped, SwarmEvents
from bench.disruption.history import Event, events_write, records_read
from bench.disruption.peers import ADDRESS, PEERS, PORT

ROOT = Path(__file__).resolve().parents[3]
CLIENTS = {"keep": 8, "new": 3, "download": 3, "echo": 4}
SMALL_FILES, LONG_FILES, LONG_SIZE = 32, 4, 3_000_000
VIP = "10.77.0.10"
REST = 0.15  # seconds between two events
END_TIMEOUT = 30.0  # for the clients to finish their last requests

CONFIG = """
[swarm]
name = "disruption"
drain_timeout = "{drain}s"

[nic]
interface = "sl-nic0"
netns = "{prefix}-host"

[[service]]
name = "https"
address = ["{vip}"]
port = 443
chain = ["tcp", "tls", "http", "app"]

[layer.tcp]
instances = 3

[layer.tls]
instances = 3
self_signed = ["swarmline.test"]

[layer.http]
instances = 3
keepalive_timeout = "60s"

[layer.app]
instances = 3
root = "{site}"
echo = true
"""


@dataclass(frozen=True)
class Options:
    """How much, of what, and where."""

    prefix: str
    run_dir: Path
    counts: Mapping[str, int]  # kind -> events
    seconds: float  # of the undisturbed time before each kind, and at least of each kind
    peers: tuple[str, ...]
    limits: Limits = Limits()  # noqa: RUF009 (frozen)
    drain: float = 10.0  # drain timeout
    manager_stall: float = 5.0
    age: float = AGE  # of a process before it is killed
    keep: Path | None = None  # histories stay here
    say: Callable[[str], None] = lambda _text: None
    clients: Mapping[str, int] = field(default_factory=lambda: CLIENTS)


@dataclass(frozen=True)
class Result:
    """One kind of event on one system."""

    system: str
    kind: str
    tally: Tally | None  # None: skipped
    baseline: Tally | None = None
    why: str = ""  # it was skipped
    events: tuple[Event, ...] = ()
    seconds: float = 0.0


class Events(Protocol):
    """A system under test: the swarm, or a peer."""

    system: str

    def ready(self, kind: str) -> None: ...
    def one(self, kind: str) -> Event: ...
    def whole(self) -> object: ...


@dataclass(frozen=True)
class Site:
    """Files of which each can be told from each other, by any piece of it."""

    folder: Path
    small: list[tuple[str, int, str]]
    long: list[tuple[str, int, str]]


def make_site(folder: Path) -> Site:
    (folder / "site").mkdir()
    folder.chmod(0o755)
    draw = random.Random(7)

    def file(name: str, size: int) -> tuple[str, int, str]:
        data = (f"file {name}\n".encode() + draw.randbytes(size))[:size]
        (folder / "site" / name).write_bytes(data)
        return f"/{name}", size, hashlib.sha256(data).hexdigest()

    small = [file(f"small-{n}.txt", draw.choice((200, 1500, 9000, 20_000)) + n) for n in range(SMALL_FILES)]
    return Site(folder / "site", small, [file(f"long-{n}.bin", LONG_SIZE + n) for n in range(LONG_FILES)])


# ---- the clients' process


@contextmanager
def clients(
    options: Options, site: Site, host: str, port: int, history: Path, started: dict[str, int]
) -> Iterator[None]:
    """Clients at work in the lab's client namespace; ``started`` is filled at the end."""
    given = {
        "host": host,
        "port": port,
        "history": str(history),
        "small": site.small,
        "long": site.long,
        "clients": dict(options.clients),
    }
    argv = [
        "nsenter",
        f"--net=/run/netns/{options.prefix}-client",
        "--",
        sys.executable,
        "-P",
        "-m",
        "bench.disruption.clients",
        json.dumps(given),
    ]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    )
    try:
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("the clients did not start")
        yield
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=END_TIMEOUT)
        started.update(json.loads(out))
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


# ---- kinds of events


def disturb(
    options: Options, system: Events, kinds: Sequence[str], site: Site, host: str, port: int, folder: Path
) -> list[Result]:
    """Baseline, events whose kinds take turns, verdict on each kind."""
    begun, results = time.monotonic(), []
    for kind in kinds:
        try:
            system.ready(kind)
        except Skipped as reason:
            results.append(Result(system.system, kind, None, why=str(reason)))
    kinds = [kind for kind in kinds if kind not in {r.kind for r in results}]
    if not kinds:
        return results
    name = f"{system.system}-{kinds[0]}" + "-and-others" * (len(kinds) > 1)
    history, started = folder / f"{name}.jsonl", dict[str, int]()
    with clients(options, site, host, port, history, started):
        time.sleep(0.5)  # all have their connections
        start = time.monotonic_ns()
        time.sleep(options.seconds)
        events = [Event("baseline", start, time.monotonic_ns())]
        events += _events(options, system, _turns({kind: options.counts[kind] for kind in kinds}))
        time.sleep(1.0)  # what an event did to a request may show only now
    with (folder / f"{name}.events").open("w") as file:
        events_write(file, events)
    tallies = check(records_read(history), events, started, options.limits)
    if options.keep is None:
        history.unlink()
    seconds = time.monotonic() - begun
    for kind in kinds:
        own = tuple(e for e in events if e.kind == kind)
        tally = tallies.get(kind, Tally(kind))
        results.append(Result(system.system, kind, tally, tallies["baseline"], events=own, seconds=seconds))
    return results


def _turns(counts: Mapping[str, int]) -> list[str]:
    """Each kind as often as it is asked for, in turns."""
    rounds = range(max(counts.values()))
    return [kind for n in rounds for kind, count in counts.items() if n < count]


def _events(options: Options, system: Events, kinds: Sequence[str]) -> Iterator[Event]:
    bad = 0
    for n, kind in enumerate(kinds):
        event = system.one(kind)
        yield event
        bad = bad + 1 if event.fields.get("not_whole") else 0
        if bad == 2:
            options.say(f"  {system.system} {kind}: given up after {n + 1} of {len(kinds)}")
            return
        if n % 50 == 49:
            options.say(f"  {system.system} {kind}: {n + 1} of {len(kinds)}")
        time.sleep(REST)
    with contextlib.suppress(TimeoutError):
        system.whole()  # the last ones drain


# ---- systems


def run(options: Options, done: Callable[[Result], None]) -> list[Result]:
    """Everything; each result is handed to ``done`` as soon as it is there."""
    results: list[Result] = []

    def take(found: list[Result]) -> None:
        results.extend(found)
        for result in found:
            done(result)

    with _folder(options) as folder, _lab(options.prefix):
        site = make_site(folder)
        rounds = [[kind for kind in kinds if options.counts.get(kind)] for kinds in ROUNDS]
        rounds = [kinds for kinds in rounds if kinds]
        if rounds:
            config = folder / "swarm.toml"
            config.write_text(
                CONFIG.format(drain=f"{options.drain:g}", prefix=options.prefix, vip=VIP, site=site.folder)
            )
            while rounds:
                with _swarm(options.run_dir, config), contextlib.suppress(TimeoutError):
                    swarm = SwarmEvents(options.run_dir, config, options.drain, options.manager_stall, options.age)
                    while rounds:
                        take(disturb(options, swarm, rounds.pop(0), site, VIP, 443, folder))
                        swarm.whole()  # else the next kinds get a new swarm
        for name in options.peers:
            try:
                with PEERS[name](f"{options.prefix}-host", folder, site.folder) as peer:
                    for kind in peer.kinds:
                        if options.counts.get(kind):
                            take(disturb(options, peer, [kind], site, ADDRESS, PORT, folder))
            except Skipped as reason:
                take([Result(name, "all", None, why=str(reason))])
    return results


@contextmanager
def _folder(options: Options) -> Iterator[Path]:
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        subprocess.run(["rm", "-rf", str(options.keep / "site")], check=True)
        yield options.keep
    else:
        with tempfile.TemporaryDirectory(prefix="sl-disruption-") as folder:
            yield Path(folder)


@contextmanager
def _lab(prefix: str) -> Iterator[None]:
    try:
        subprocess.run([str(ROOT / "tools/lab"), "up", "--prefix", prefix], check=True)
        yield
    finally:
        subprocess.run([str(ROOT / "tools/lab"), "down", "--prefix", prefix], check=False, stdout=subprocess.DEVNULL)


@contextmanager
def _swarm(run_dir: Path, config: Path) -> Iterator[None]:
    up = subprocess.run(
        [SWARMLINE, "up", str(config), "--detach", "--run-dir", str(run_dir)],
        capture_output=True,
        text=True,
        check=False,
    )
    try:
        if up.returncode:
            raise RuntimeError(f"swarmline up: {up.stderr.strip()}")
        yield
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["cp", "-r", str(run_dir / "log"), str(config.parent)], check=False, capture_output=True)
        subprocess.run([SWARMLINE, "down", "--run-dir", str(run_dir)], check=False, capture_output=True)


def as_json(result: Result) -> dict[str, Any]:
    """For machines."""
    if result.tally is None:
        return {"system": result.system, "kind": result.kind, "skipped": result.why}
    values = {name: value for name, value in vars(result.tally).items() if name != "kind"}
    return {
        "system": result.system,
        "kind": result.kind,
        "seconds": round(result.seconds, 1),
        "good": result.tally.good,
        "unexcused": result.tally.unexcused,
        **values,
        "baseline": {
            name: value
            for name, value in vars(result.baseline).items()
            if name in ("requests", "failed", "lost", "worst_ms", "blocked_ms")
        }
        if result.baseline
        else {},
        "whys": [e.fields["why"] for e in result.events if "why" in e.fields],
    }
