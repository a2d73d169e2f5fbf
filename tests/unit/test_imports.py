# SPDX-License-Identifier: Apache-2.0
"""The direction of dependence, in Python and in C, read from the sources.

Python: cli -> api -> manager -> actor -> instances -> host -> _native; all of them -> policy, errors.
C:      abi <- base <- {edge, vhost, classifier, crypto, dpdk} <- {router, layers <- instance}; ebpf -> abi only; no
        word of Python.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

PACKAGE = ROOT / "pipeline"

# Each part may import those before it. The manager decides what is next, the actor does it, status tells it,
# the daemon is all of that as a process.
PYTHON_ORDER = (
    *("errors", "policy", "_native", "host", "instances"),
    *("actor", "events", "manager", "metrics", "status", "openapi", "api", "daemon", "cli"),
)
MAY_IMPORT_NATIVE = {"host", "instances"}

# policy computes: these modules can not reach a file, a socket, a process or a clock
PURE = {
    *("__future__", "abc", "array", "bisect", "collections", "contextlib", "copy", "dataclasses", "difflib", "enum"),
    *("fractions", "functools", "hashlib", "heapq", "ipaddress", "itertools", "json", "math", "operator"),
    *("re", "statistics", "string", "struct", "textwrap", "tomllib", "types", "typing", "zlib", "pydantic"),
}
PURE_NAMES = {"pathlib": {"PurePath", "PurePosixPath"}, "random": {"Random"}}

C_DIRECTION: dict[str, set[str]] = {
    "abi": set(),
    "base": {"abi"},
    "edge": {"base", "abi"},
    "vhost": {"base", "abi"},
    "classifier": {"base", "abi"},
    "dpdk": {"base", "abi"},
    "crypto": {"dpdk", "base", "abi"},
    "router": {"dpdk", "classifier", "vhost", "edge", "base", "abi"},
    "layers": {"crypto", "edge", "base", "abi"},
    "instance": {"layers", "crypto", "edge", "base", "abi"},
}
# The interface that layers implement and the instance drives is declared where it is driven.
C_INTERFACES = {("layers", "instance/layer.h")}
# The BPF program, compiled for user space from the same source.
C_COMPILES = {("classifier", "ebpf/cursor.h"), ("classifier", "ebpf/classifier.bpf.c")}


def part_of(path: Path) -> str:
    """``pipeline/host/router.py`` belongs to the part host, ``pipeline/api.py`` to api."""
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py").removesuffix(".pyi")


def python_files() -> list[Path]:
    top = {PACKAGE / "__init__.py", PACKAGE / "_native_build.py"}
    return sorted({path for pattern in ("*.py", "*.pyi") for path in PACKAGE.rglob(pattern)} - top)


def imports(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, in functions too, relative ones resolved; name may be empty."""
    package = ("pipeline", *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, ""
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            for alias in node.names:
                yield module, alias.name


def imported_parts(path: Path) -> Iterator[str]:
    for module, name in imports(path):
        top, *rest = module.split(".")
        if top == "pipeline":
            yield rest[0] if rest else name


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_python_direction(path: Path) -> None:
    part = part_of(path)
    assert part in PYTHON_ORDER, f"say in PYTHON_ORDER where {part} stands"
    allowed = set(PYTHON_ORDER[: PYTHON_ORDER.index(part) + 1])
    if part not in MAY_IMPORT_NATIVE:
        allowed.discard("_native")
    assert set(imported_parts(path)) <= allowed


@pytest.mark.parametrize("path", python_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_python_imports_are_declared(path: Path) -> None:
    """Outside the standard library, only what pyproject.toml lists."""
    project = (ROOT / "pyproject.toml").read_text()
    declared = {name.split(".")[0] for name in re.findall(r'^    "([A-Za-z_][\w.-]*)[><=]', project, re.MULTILINE)}
    tops = {module.split(".")[0] for module, _ in imports(path)}
    assert tops <= set(sys.stdlib_module_names) | {"pipeline"} | declared


@pytest.mark.parametrize(
    "path", sorted((PACKAGE / "policy").rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT))
)
def test_policy_does_no_io(path: Path) -> None:
    for module, name in imports(path):
        top = module.split(".")[0]
        if top != "pipeline" and top not in PURE:
            assert name in PURE_NAMES.get(top, set()), f"{path.name} imports {module} {name}"
    names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
    assert not names & {"open", "print", "input", "exec", "eval", "__import__"}


def c_files(folder: str) -> list[Path]:
    return sorted(path for path in (ROOT / folder).rglob("*") if path.suffix in {".c", ".h"})


def own_includes(path: Path) -> Iterator[Path]:
    """The project's files that a C file includes, looked for next to it and in c/, as the build does."""
    for name in re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(), re.MULTILINE):
        for folder in (path.parent, ROOT / "c", ROOT):
            if (folder / name).exists():
                yield (folder / name).resolve()
                break
        else:
            raise AssertionError(f"{path}: where is {name}?")


@pytest.mark.parametrize("path", c_files("c"), ids=lambda path: str(path.relative_to(ROOT)))
def test_c_direction(path: Path) -> None:
    part = path.relative_to(ROOT / "c").parts[0]
    assert part in C_DIRECTION, f"say in C_DIRECTION what c/{part} may include"
    for included in own_includes(path):
        if (part, str(included.relative_to(ROOT))) in C_COMPILES:
            continue
        assert included.is_relative_to(ROOT / "c"), f"{path.name} includes {included.relative_to(ROOT)}"
        inside = included.relative_to(ROOT / "c")
        allowed = inside.parts[0] in C_DIRECTION[part] | {part} or (part, str(inside)) in C_INTERFACES
        assert allowed, f"c/{part} may not include {inside}"


@pytest.mark.parametrize("path", c_files("ebpf"), ids=lambda path: str(path.relative_to(ROOT)))
def test_ebpf_includes_only_the_abi(path: Path) -> None:
    for included in own_includes(path):
        assert included.parent in {ROOT / "c/abi", ROOT / "ebpf"}


@pytest.mark.parametrize("path", c_files("c"), ids=lambda path: str(path.relative_to(ROOT)))
def test_c_does_not_know_python(path: Path) -> None:
    code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)
    assert not re.search(r"\bPy(thon|Object|_)|cffi|asyncio", code)
