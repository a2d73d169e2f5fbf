# SPDX-License-Identifier: Apache-2.0
"""A whole swarm for tests: a real lab, the real command, a run-time folder and a config of its own."""

import json
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from os import close, pidfd_open
from pathlib import Path
from typing import Any, TypeVar

from support import ROOT
from support.evidence import EVIDENCE
from support.lab import Lab, in_netns
from support.leftovers import leftovers

from pipeline.cli.client import call
from pipeline.errors import SwarmlineError
from pipeline.host.processes import log_tail

T = TypeVar("T")
FOUND = 0.5  # seconds until a stalled instance is found
TRIES = 4  # what else the machine does may make a manager late; it can not make it early
SWARMLINE = str(Path(sys.executable).with_name("swarmline"))
INDEX = b"<!doctype html><title>a swarm under test</title>\n" * 20


def eventually(probe: Callable[[], T | None], what: str, timeout: float = 10.0) -> T:
    """What ``probe`` returns, as soon as that is something: nothing found is not found yet. Fails after ``timeout``
    seconds.
    """
    deadline = time.monotonic() + timeout
    while True:
        if found := probe():
            return found
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)


def kill(pid: int) -> None:
    """kill -9, and wait until it is dead."""
    pidfd = pidfd_open(pid)
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        select.select([pidfd], [], [], 5)
    finally:
        close(pidfd)


def stalled(swarm: "Swarm", layer: str, count: int, timeout: float = 10.0) -> float:
    """Stops one of so many instances until it is found and replaced. Returns the seconds until it was found."""
    victim = swarm.eventually_active(layer, count, timeout)[0]
    since = time.time()
    pidfd = pidfd_open(victim["pid"])
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        event = eventually(lambda: swarm.failed(victim["vm_id"]), f"{layer} instance {victim['vm_id']} is found")
        with suppress(ProcessLookupError):  # it is dead already, or wakes up again
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
    finally:
        close(pidfd)
    assert "gave no heartbeat" in event["text"]
    swarm.eventually_active(layer, count, timeout)
    assert victim["vm_id"] not in swarm.pids()
    return float(event["time"]) - since


def stall_is_found(swarm: "Swarm", layer: str, count: int, timeout: float = 10.0) -> None:
    """An instance of so many that is stopped is found in FOUND seconds, once in TRIES at least."""
    times: list[float] = []
    while not times or (min(times) > FOUND and len(times) < TRIES):
        times.append(stalled(swarm, layer, count, timeout))
    assert min(times) <= FOUND, f"found after {times} s"


def toml(tables: Mapping[str, Any]) -> str:
    """TOML of tables by dotted name; a list makes an array of tables."""

    def value(of: Any) -> str:
        if isinstance(of, list):
            return f"[{', '.join(map(value, of))}]"
        if isinstance(of, dict):
            return f"{{{', '.join(f'{k} = {value(v)}' for k, v in of.items())}}}"
        return json.dumps(of)

    lines = []
    for name, table in tables.items():
        for one in table if isinstance(table, list) else [table]:
            lines.append(f"[[{name}]]" if isinstance(table, list) else f"[{name}]")
            lines += [f"{key} = {value(of)}" for key, of in one.items()] + [""]
    return "\n".join(lines)


def config_of(lab: Lab, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The tables of a config: HTTPS on 443 and HTTP on 80, sharing http and app. ``changes`` are merged in
    by table; a value None removes its key.
    """
    vips = [lab.vip4, lab.vip6]
    tables: dict[str, Any] = {
        "swarm": {"name": "test", "drain_timeout": "10s"},
        "nic": {"interface": lab.nic, "netns": lab.host},
        "service": [
            {"name": "https", "address": vips, "port": 443, "chain": ["tcp", "tls", "http", "app"]},
            {"name": "http", "address": vips, "port": 80, "chain": ["tcp", "http", "app"]},
        ],
        "layer.tcp": {},
        "layer.tls": {"self_signed": ["swarmline.test", "www.swarmline.test"]},
        "layer.http": {},
        "layer.app": {"root": "site", "echo": True},
    }
    for name, change in (changes or {}).items():
        if isinstance(change, list):
            tables[name] = change
        else:
            merged = {**tables.get(name, {}), **change}
            tables[name] = {key: value for key, value in merged.items() if value is not None}
    return tables


OWN_NAME = "swarmline.test"
OWN_CERTIFICATE_FILE, OWN_KEY_FILE = f"{OWN_NAME}.pem", f"{OWN_NAME}.key"
# [layer.tls] with what certificate_made(folder, OWN_NAME) makes
OWN_CERTIFICATE = {"self_signed": None, "certificates": [{"cert": OWN_CERTIFICATE_FILE, "key": OWN_KEY_FILE}]}


def certificate_made(folder: Path, name: str) -> None:
    """Files of a certificate for this name, and of its key."""
    subject = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-subj", f"/CN={name}")
    files = ("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem")
    subprocess.run(["openssl", "req", "-x509", *subject, *files], check=True, capture_output=True)


@dataclass(frozen=True)
class Swarm:
    """A swarm in a lab. ``command`` runs the real command; ``status`` asks the manager without one."""

    lab: Lab
    folder: Path  # the config file, the site, and the run-time folder
    alone: bool = True  # no other swarm is on the NIC: a program there is ours

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def config(self) -> Path:
        return self.folder / "swarm.toml"

    @property
    def site(self) -> Path:
        return self.folder / "site"

    def configure(self, changes: Mapping[str, Any] | None = None) -> None:
        self.config.write_text(toml(config_of(self.lab, changes)))

    def argv(self, *words: str) -> list[str]:
        return [SWARMLINE, *words, f"--run-dir={self.run_dir}"]

    def command(self, *words: str, ok: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(self.argv(*words), capture_output=True, text=True, timeout=150, check=False)
        assert not ok or done.returncode == 0, f"swarmline {' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def up(self) -> None:
        self.command("up", str(self.config), "--detach")

    # ---- looking

    def status(self) -> dict[str, Any]:
        return call(self.run_dir, "GET", "/v1/status")

    def events(self, kind: str) -> list[str]:
        found = call(self.run_dir, "GET", "/v1/events")["events"]
        return [event["text"] for event in found if event["kind"] == kind]

    def failed(self, vm_id: int) -> dict[str, Any] | None:
        """The event that tells that this instance failed."""
        found = call(self.run_dir, "GET", "/v1/events")["events"]
        return next((e for e in found if e["kind"] == "instance-failed" and e["fields"].get("vm_id") == vm_id), None)

    def instances(self, layer: str = "", state: str = "active") -> list[dict[str, Any]]:
        return [
            i for i in self.status()["instances"] if (not layer or layer in i["layers"]) and state in ("", i["state"])
        ]

    def pids(self) -> dict[int, int]:
        """Every instance's process by VMID, whatever its state."""
        return {i["vm_id"]: i["pid"] for i in self.status()["instances"]}

    def total(self, layer: str, number: str = "requests") -> int:
        """A number of VMStatus, or a counter, summed over the layer's instances."""
        return sum(
            i[number] if number in i else i["counters"].get(number, 0) for i in self.instances(layer, state="")
        )

    def published(self) -> None:
        """Returns when what happened before is in the numbers of all instances. The manager may have looked at
        them just before, so the second change is the one that is surely later.
        """

        def busy() -> dict[int, int]:
            return {i["vm_id"]: i["busy_ns"] for i in self.instances()}

        def news(before: dict[int, int]) -> bool:
            return all(ns != before.get(vm_id) for vm_id, ns in busy().items())

        for _ in range(2):
            eventually(partial(news, busy()), "another heartbeat of all instances")

    def eventually_active(self, layer: str, count: int, timeout: float = 10.0) -> list[dict[str, Any]]:
        """Waits until the layer has so many active instances and no other ones."""

        def settled() -> list[dict[str, Any]] | None:
            pool = self.instances(layer, state="")
            return pool if len(pool) == count and all(i["state"] == "active" for i in pool) else None

        return eventually(settled, f"{count} active {layer} instances and no others", timeout)

    def manager_pid(self) -> int:
        return int(self.status()["swarm"]["pid"])

    def logs(self) -> str:
        """Last lines of all logs."""
        parts = []
        for path in (*sorted(self.run_dir.glob("*.log")), *sorted(self.run_dir.glob("log/*.log"))):
            parts += [f"---- {path.name}", *log_tail(path, 40 if path.stem in ("manager", "holder") else 6)]
        return "\n".join(parts)

    def knowledge(self) -> str:
        """What the manager, the classifier and the kernels at both ends of the connections know."""
        tcp = [("nsenter", f"--target={pid}", "--net", "ss", "-tan") for pid in self._pids_of("tcp")]
        looks = [self.argv("status", "--json"), in_netns(self.lab.client, "ss", "-tan"),
                 [sys.executable, str(ROOT / "tools/maps"), f"--run-dir={self.run_dir}"], *tcp]
        parts = []
        for argv in looks:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False)
            parts += [f"---- {' '.join(argv)}", done.stdout or done.stderr]
        return "\n".join(parts)

    def _pids_of(self, layer: str) -> list[int]:
        try:
            return [i["pid"] for i in self.instances(layer, state="") if i["pid"]]
        except SwarmlineError:
            return []

    # ---- the end

    def xdp(self) -> bool:
        """Whether a program is attached to the NIC."""
        shown = subprocess.run(
            ["ip", "-j", "-n", self.lab.host, "link", "show", "dev", self.lab.nic], capture_output=True, check=True
        )
        return "xdp" in json.loads(shown.stdout)[0]

    def left(self) -> list[str]:
        """What is still there after ``down``: nothing, if all is well."""
        found = leftovers(self.run_dir)
        if self.run_dir.exists():
            found += [f"run-time folder: {[str(p) for p in self.run_dir.rglob('*')]}"]
        return found + [f"XDP program on {self.lab.nic}"] * (self.alone and self.xdp())


@contextmanager
def swarm_prepared(lab: Lab, changes: Mapping[str, Any] | None = None, *, alone: bool = True) -> Iterator[Swarm]:
    """A config and a site, and nothing started. At the end whatever runs is taken down, and nothing may be left."""
    folder = Path(tempfile.mkdtemp(prefix="slt-", dir="/tmp"))  # short: paths of UNIX sockets are
    swarm = Swarm(lab, folder, alone)
    swarm.site.mkdir()
    (swarm.site / "index.html").write_bytes(INDEX)
    folder.chmod(0o755)
    swarm.configure(changes)
    evidence = {f"logs of {swarm.run_dir}": swarm.logs, f"what {swarm.run_dir} knows": swarm.knowledge}
    EVIDENCE.update(evidence)
    try:
        yield swarm
    finally:
        said = swarm.command("down", ok=False).stderr.strip() if swarm.left() else "not called"
        for title in evidence:
            del EVIDENCE[title]
        left = swarm.left()
        if not any(line.startswith("mount ") for line in left):
            shutil.rmtree(folder)
        assert not left, f"left behind by `down` ({said}):\n" + "\n".join(left)


@contextmanager
def swarm_made(lab: Lab, changes: Mapping[str, Any] | None = None) -> Iterator[Swarm]:
    """A swarm that is up."""
    with swarm_prepared(lab, changes) as swarm:
        swarm.up()
        yield swarm


@contextmanager
def unharmed(swarm: Swarm) -> Iterator[None]:
    """Every process of the swarm is the same after the block as before it: nothing died and was replaced."""

    def processes() -> tuple[dict[int, int], int, int]:
        status = swarm.status()
        return swarm.pids(), status["router"]["pid"], status["swarm"]["pid"]

    before = processes()
    yield
    try:
        assert processes() == before
    except SwarmlineError as error:
        raise AssertionError(f"the manager is gone: {error}") from error


def manager_of(swarm: Swarm) -> int | None:
    """None: it is not there, or does not answer yet."""
    try:
        return swarm.manager_pid()
    except SwarmlineError:
        return None
