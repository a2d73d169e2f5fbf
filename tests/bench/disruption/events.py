# SPDX-License-Identifier: Apache-2.0
"""Disturbs a swarm: scale steps, drains, reloads, deaths and stalls, one at a time, each until the swarm is whole
again."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.disruption.history import Event
from pipeline.cli.client import call
from pipeline.errors import SwarmlineError
from pipeline.host.classifier import Pins, pin_root
from pipeline.policy.health import SHORT_LIFE
from pipeline.policy.routing import disruption

SWARMLINE = str(Path(sys.executable).with_name("swarmline"))  # of the environment that this runs in
LAYERS = ("app", "http", "tls", "tcp")
KINDS = (
    "scale",
    "drain",
    "reload",
    "kill-manager",
    "stall-manager",
    "dead-manager",
    "kill-router",
    *(f"{how}-{layer}" for how in ("kill", "stall") for layer in LAYERS),
)
# Kinds of one tuple take turns: while an instance of one layer grows old enough to be killed, others die.
ROUNDS = (*((kind,) for kind in KINDS[:7]), KINDS[7:])
WHOLE_TIMEOUT = 30.0  # on top of the drain timeout
LOOK = 0.01  # seconds between two looks at the status
MANAGER_STALL = 5.0  # seconds
AGE = SHORT_LIFE + 0.2  # seconds that a process lives before it is killed: quicker deaths are a crash loop
MANAGER_AGE = 2.2  # the same of the manager
MANAGER_TURNS = 0.6  # seconds: what a new manager would change needlessly, it changes in its first turns

Status = dict[str, Any]


class Skipped(Exception):
    """This kind of event is not to be had, and why."""


class SwarmEvents:
    """The events of one swarm. ``config`` is the file that it was started with."""

    system = "swarmline"
    kinds = KINDS

    def __init__(
        self, run_dir: Path, config: Path, drain_timeout: float, manager_stall: float = MANAGER_STALL, age: float = AGE
    ) -> None:
        self._run_dir, self._config = run_dir, config
        self._timeout = WHOLE_TIMEOUT + drain_timeout
        self._manager_stall, self._age = manager_stall, age
        self._random = random.Random(1)
        self._turns = itertools.count()
        self._steps: dict[str, Callable[[], dict[str, Any]]] = {
            "scale": self._scale,
            "drain": self._drain,
            "reload": self._reload,
            "kill-manager": self._kill_manager,
            "stall-manager": self._stall_manager,
            "dead-manager": self._dead_manager,
            "kill-router": self._kill_router,
        }

    def ready(self, kind: str) -> None:
        """All kinds can be made."""

    def one(self, kind: str) -> Event:
        """Makes one event and waits until the swarm has its capacity again."""
        how, _, layer = kind.partition("-")
        victim = self._victim(layer) if layer else None
        before = self._flows()
        start = time.monotonic_ns()
        try:
            if kind in self._steps:
                fields = self._steps[kind]()
            else:
                assert victim
                fields = (self._kill if how == "kill" else self._stall)(layer, victim)
        except TimeoutError as error:
            fields = {"not_whole": True, "why": str(error)}
        end, after = time.monotonic_ns(), self._flows()
        fields |= {"moved": after[0] - before[0], "remapped": disruption(before[1], after[1])}
        return Event(kind, start, end, f"{kind} {fields.pop('what', '')}".strip(), fields)

    # ---- looking

    def _flows(self) -> tuple[int, Sequence[int]]:
        """Of the classifier: how many known flows were ever given to another instance, and the table for new ones."""
        with Pins(pin_root(self._run_dir)) as pins:
            return pins.counters()["flow_moved"], pins.table(0) or ()

    def status(self) -> Status:
        """Waits for the manager if it is just away."""
        end = time.monotonic() + self._timeout
        while True:
            try:
                return call(self._run_dir, "GET", "/v1/status")
            except SwarmlineError:
                if time.monotonic() > end:
                    raise TimeoutError("the manager does not answer") from None
                time.sleep(LOOK)

    def _until(self, what: str, seen: Callable[[Status], bool]) -> Status:
        end = time.monotonic() + self._timeout
        while not seen(status := self.status()):
            if time.monotonic() > end:
                raise TimeoutError(f"no end of {what}: {_shape(status)}")
            time.sleep(LOOK)
        return status

    def whole(self) -> Status:
        """Waits until each layer has its active instances and no others."""
        return self._until("waiting for a whole swarm", _whole)

    def _pick(self, layer: str) -> dict[str, Any]:
        return self._random.choice(
            [i for i in self.status()["instances"] if i["state"] == "active" and layer in i["layers"]]
        )

    def _victim(self, layer: str) -> dict[str, Any] | None:
        """The oldest instance of the layer (or the manager), as soon as it is old enough."""
        status = self.status()
        if layer in ("manager", "router"):
            pid, victim = status["swarm"]["pid"], None
        else:
            victim = min(
                (i for i in status["instances"] if i["state"] == "active" and layer in i["layers"]),
                key=lambda i: -_age(i["pid"]),
            )
            pid = victim["pid"]
        if layer != "router":
            age = min(self._age, MANAGER_AGE) if layer == "manager" else self._age
            time.sleep(max(age - _age(pid), 0))
        return victim

    # ---- what the operator does

    def _scale(self) -> dict[str, Any]:
        """Each layer in turn one up, then each one down."""
        turn = next(self._turns)
        layer, up = LAYERS[turn % len(LAYERS)], turn // len(LAYERS) % 2 == 0
        now = next(la["instances"] for la in self.status()["layers"] if la["layer"] == layer)
        wanted = now + 1 if up else max(now - 1, 1)
        call(self._run_dir, "POST", "/v1/scale", {"layer": layer, "instances": wanted})
        return {
            "what": f"{layer}={wanted}",
            "back_ms": self._timed(lambda: self._until("scaling", lambda s: _active(s, layer) == wanted)),
        }

    def _drain(self) -> dict[str, Any]:
        instance = self._of_each_layer()
        vm_id = instance["vm_id"]
        layer = instance["layers"][0]
        call(self._run_dir, "POST", "/v1/drain", {"vm_id": vm_id})

        def back(s: Status) -> bool:
            return vm_id not in _active_ids(s) and _active(s, layer) >= _wanted(s, layer)

        return {
            "what": f"{layer} vm {vm_id}",
            "back_ms": self._timed(lambda: self._until(f"drain of {vm_id}", back)),
        }

    def _of_each_layer(self) -> dict[str, Any]:
        return self._pick(LAYERS[next(self._turns) % len(LAYERS)])

    def _reload(self) -> dict[str, Any]:
        """Another keep-alive timeout: the http instances are replaced."""
        seconds = 61 + next(self._turns) % 2
        lines = [
            f'keepalive_timeout = "{seconds}s"' if line.startswith("keepalive_timeout") else line
            for line in self._config.read_text().splitlines()
        ]
        self._config.write_text("\n".join(lines) + "\n")
        fields: dict[str, Any] = {"what": f"keepalive_timeout={seconds}s"}
        try:
            call(self._run_dir, "POST", "/v1/reload", {})
        except SwarmlineError as error:
            return {**fields, "not_whole": True, "why": error.explain()}
        time.sleep(0.05)
        return {**fields, "back_ms": self._timed(self.whole)}

    # ---- what fate does

    def _kill(self, layer: str, instance: dict[str, Any]) -> dict[str, Any]:
        start = time.monotonic()
        os.kill(instance["pid"], signal.SIGKILL)
        fields = self._replaced(layer, instance, start)
        self.whole()
        return fields

    def _stall(self, layer: str, instance: dict[str, Any]) -> dict[str, Any]:
        """Stopped until the swarm has noticed, or has not for too long; then it wakes up again."""
        start = time.monotonic()
        os.kill(instance["pid"], signal.SIGSTOP)
        try:
            fields = self._replaced(layer, instance, start)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(instance["pid"], signal.SIGCONT)
        self.whole()
        return fields

    def _replaced(self, layer: str, instance: dict[str, Any], start: float) -> dict[str, Any]:
        """Waits until this one is known to be lost, then until its layer has as many active instances as before."""
        self._until("noticing it", lambda s: instance["vm_id"] not in _active_ids(s))
        seen = time.monotonic()
        self._until("replacing it", lambda s: _active(s, layer) >= _wanted(s, layer))
        return {
            "what": f"vm {instance['vm_id']}",
            "seen_ms": (seen - start) * 1e3,
            "back_ms": (time.monotonic() - start) * 1e3,
        }

    def _kill_manager(self, dead: float = 0.0) -> dict[str, Any]:
        before = self.whole()
        pid = before["swarm"]["pid"]
        if dead:        # the holder starts another at once: so it is only stopped at first
            os.kill(pid, signal.SIGSTOP)
            time.sleep(dead)
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        self._until("a new manager", lambda s: s["swarm"]["pid"] != pid and _whole(s))
        back = time.monotonic()
        time.sleep(MANAGER_TURNS)
        after = self.whole()
        new = sorted(_vm_ids(after) - _vm_ids(before))
        fields: dict[str, Any] = {"back_ms": (back - start) * 1e3, "instances_new": len(new)}
        if new or _sizes(before) != _sizes(after):
            fields |= {
                "not_whole": True,
                "why": f"the new manager changed the swarm: {_sizes(before)} -> {_sizes(after)}, new {new}",
            }
        return fields

    def _dead_manager(self) -> dict[str, Any]:
        """Nobody manages for a while; then another adopts the swarm."""
        return self._kill_manager(self._manager_stall)

    def _stall_manager(self) -> dict[str, Any]:
        pid = self.status()["swarm"]["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            time.sleep(self._manager_stall)
        finally:
            os.kill(pid, signal.SIGCONT)
        start = time.monotonic()
        self.whole()
        return {"back_ms": (time.monotonic() - start) * 1e3}

    def _kill_router(self) -> dict[str, Any]:
        pid = next(_pids_of(self._run_dir, "swarmline-router"))
        start = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        while pid in (now := set(_pids_of(self._run_dir, "swarmline-router"))) or not now:
            if time.monotonic() - start > self._timeout:
                raise TimeoutError("no new router")
            time.sleep(LOOK)
        seen = time.monotonic()
        self.whole()
        return {"seen_ms": (seen - start) * 1e3, "back_ms": (time.monotonic() - start) * 1e3}

    def _timed(self, wait: Callable[[], object]) -> float:
        start = time.monotonic()
        wait()
        return (time.monotonic() - start) * 1e3


def _age(pid: int) -> float:
    """Seconds that a process lives."""
    started: int = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def _vm_ids(status: Status) -> set[int]:
    return {i["vm_id"] for i in status["instances"]}


def _active_ids(status: Status) -> set[int]:
    return {i["vm_id"] for i in status["instances"] if i["state"] == "active"}


def _active(status: Status, layer: str) -> int:
    return sum(i["state"] == "active" and layer in i["layers"] for i in status["instances"])


def _wanted(status: Status, layer: str) -> int:
    return int(next(la["instances"] for la in status["layers"] if la["layer"] == layer))


def _sizes(status: Status) -> dict[str, int]:
    return {la["layer"]: la["instances"] for la in status["layers"]}


def _whole(status: Status) -> bool:
    return all(i["state"] == "active" for i in status["instances"]) and all(
        _active(status, la["layer"]) == la["instances"] for la in status["layers"]
    )


def _shape(status: Status) -> str:
    return ", ".join(f"{i['vm_id']} {i['layers'][0]} {i['state']}" for i in status["instances"])


def _pids_of(run_dir: Path, program: str) -> Iterator[int]:
    """Processes of this swarm that run the program."""
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            argv = cmdline.read_bytes().decode(errors="replace").split("\0")
            if f"--run-dir={run_dir}" in argv and Path(argv[0]).name == program:
                yield int(cmdline.parent.name)
