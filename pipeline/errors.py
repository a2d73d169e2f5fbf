# SPDX-License-Identifier: Apache-2.0
"""Everything that swarmline raises on purpose.

::

    SwarmlineError             exit 1
    ├── ConfigError            3   the config file is wrong; knows file, line, key and every other problem of it
    ├── PlanError              4   the change asked for is not allowed in this state of the swarm
    ├── HostError              5   something of this machine refused
    │   ├── ClassifierError        BPF object, maps, pins, the interface
    │   ├── NamespaceError         network and user namespaces, links, rights
    │   ├── HugepageError          memory for edges
    │   ├── RouterError            the Front-End Router
    │   │   └── NoRouter               none is there
    │   │       └── RouterLost             it was there, and a request may or may not have been carried out
    │   ├── HolderError            the process that keeps the memfds and serves the ivshmem sockets
    │   └── HardwareError          PCI devices, IOMMU groups, accelerators; each says which in ``address``
    │       ├── NotAllowed             the configuration does not name it
    │       ├── NoIommu                there is none, or it can not keep interrupts apart
    │       ├── NotIsolable            others are in its IOMMU group; knows them
    │       ├── DeviceInUse            the host needs it: a disk, a network interface, a driver in user space
    │       ├── DeviceVanished         it was there a moment ago
    │       ├── VfCountRefused         the number of its VFs can not be changed
    │       ├── UnbindRefused          its driver does not let go
    │       ├── BindRefused            a driver does not take it
    │       ├── GroupBusy              a process holds its IOMMU group
    │       ├── ResetUnsupported       what its former owner left in it can not be erased
    │       └── NotReleased            a guest does not let go
    ├── InstanceError          6   one instance; knows its vm_id
    │   └── LaunchError            it did not start; keeps argv, exit status and its last log lines
    ├── ApiError               7   the manager answered a request with an error, or not at all
    ├── AlreadyRunning         8   a swarm uses this run-time folder
    └── NotRunning             9   no swarm uses it

``str(error)`` is one line that says what is wrong, ``error.hint`` says how to mend it (empty if nobody can
know), ``error.explain()`` is both in one line and is what the command line prints. Anything else that escapes
is a bug.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence


class SwarmlineError(Exception):
    """Root of the tree. ``exit_code`` is the exit status of a command that ends with this error."""

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return " ".join(self.message.split())

    def explain(self) -> str:
        """What is wrong and how to mend it, in one line (a ConfigError: one line per problem)."""
        return f"{self}: {self.hint}" if self.hint else str(self)


class ConfigError(SwarmlineError):
    """A problem of the config file. One is raised per file; it carries the others as ``problems``, in order
    of line.
    """

    exit_code = 3

    def __init__(self, message: str, *, hint: str = "", file: str = "", line: int = 0, key: str = "",
                 others: Sequence[ConfigError] = ()) -> None:
        super().__init__(message, hint=hint)
        self.file = file
        self.line = line
        self.key = key
        self.others = tuple(others)

    @property
    def problems(self) -> tuple[ConfigError, ...]:
        """This problem and the others of the same file."""
        return (self, *self.others)

    @property
    def place(self) -> str:
        """``file:line: key``, as much of it as is known."""
        where = f"{self.file}:{self.line}" if self.line else self.file
        return ": ".join(part for part in (where, self.key) if part)

    def __str__(self) -> str:
        line = ": ".join(part for part in (self.place, super().__str__()) if part)
        more = len(self.others)
        return f"{line} (and {more} more problem{'s' if more > 1 else ''})" if more else line

    def explain(self) -> str:
        lines = []
        for problem in self.problems:
            line = f"{problem.place}: {SwarmlineError.__str__(problem)}"
            lines.append(f"{line}: {problem.hint}" if problem.hint else line)
        return "\n".join(lines)


class PlanError(SwarmlineError):
    """The change is not allowed; nothing was done."""

    exit_code = 4


class HostError(SwarmlineError):
    """Something of this machine refused: a right, a resource, a program."""

    exit_code = 5


class ClassifierError(HostError):
    """The XDP program, its maps and pins, or the interface it belongs on."""


class NamespaceError(HostError):
    """Network and user namespaces, links and addresses."""


class HugepageError(HostError):
    """Memory for an edge could not be had."""


class RouterError(HostError):
    """The router did not start, died, or refused a command."""


class NoRouter(RouterError):
    """None is there, or it does not answer: what it was to know it is told when it is there again."""


class RouterLost(NoRouter):
    """It was there, and a request may or may not have been carried out."""


class HolderError(HostError):
    """The holder did not start, died, or refused a command."""


class HardwareError(HostError):
    """A device could not be found, bound or given to an instance. The machine is as it was before."""

    def __init__(self, message: str, *, address: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.address = address


class NotAllowed(HardwareError):
    """Neither the device nor its PF is in [hardware] allow."""


class NoIommu(HardwareError):
    """Without one, a guest's device could write anywhere."""


class NotIsolable(HardwareError):
    """Whoever has the device can reach these others."""

    def __init__(self, message: str, *, others: Sequence[str], address: str = "", hint: str = "") -> None:
        super().__init__(message, address=address, hint=hint)
        self.others = tuple(others)


class DeviceInUse(HardwareError):
    """The host needs it."""


class DeviceVanished(HardwareError):
    """It was unplugged, or its VFs were taken away."""


class VfCountRefused(HardwareError):
    """The kernel, the driver or somebody's use of VFs is against it."""


class UnbindRefused(HardwareError):
    """The driver keeps the device."""


class BindRefused(HardwareError):
    """The driver does not take the device."""


class GroupBusy(HardwareError):
    """An IOMMU group has one user at a time."""


class ResetUnsupported(HardwareError):
    """A device that can not be reset has one owner for ever."""


class NotReleased(HardwareError):
    """A guest was asked for a device and did not answer: it must be ended."""


class InstanceError(SwarmlineError):
    """One instance failed or broke the contract."""

    exit_code = 6

    def __init__(self, message: str, *, vm_id: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.vm_id = vm_id


class LaunchError(InstanceError):
    """An instance did not start. Nothing of it is left behind; what it said is kept here.

    ``exit_status`` is the exit status, negative for a signal, None if the program never ran or was still
    running.
    """

    def __init__(self, message: str, *, argv: Sequence[str], exit_status: int | None = None,
                 log_lines: Sequence[str] = (), vm_id: int = 0, hint: str = "") -> None:
        super().__init__(message, vm_id=vm_id, hint=hint)
        self.argv = tuple(argv)
        self.exit_status = exit_status
        self.log_lines = tuple(log_lines)

    def __str__(self) -> str:
        ended = "" if self.exit_status is None else f" (exit status {self.exit_status})"
        if self.exit_status is not None and self.exit_status < 0:
            ended = f" (signal {-self.exit_status})"
        last = f"; it said last: {self.log_lines[-1].strip()}" if self.log_lines else ""
        return f"{super().__str__()}{ended}{last}"

    def details(self) -> str:
        """The command line and the last log lines, for a log or ``--verbose``; several lines."""
        return "\n".join((f"$ {shlex.join(self.argv)}", *self.log_lines))


class ApiError(SwarmlineError):
    """The manager answered a request with an error, whose ``exit_code`` it then has, or did not answer."""

    exit_code = 7

    def __init__(self, message: str, *, hint: str = "", exit_code: int = 7) -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code


class AlreadyRunning(SwarmlineError):
    """A second ``up``."""

    exit_code = 8

    def __init__(self, message: str = "a swarm is running already", *,
                 hint: str = "stop it with `swarmline down`, or change it with `swarmline scale`") -> None:
        super().__init__(message, hint=hint)


class NotRunning(SwarmlineError):
    """There is no manager to talk to."""

    exit_code = 9

    def __init__(self, message: str = "no swarm is running", *,
                 hint: str = "start one with `swarmline up FILE`") -> None:
        super().__init__(message, hint=hint)
