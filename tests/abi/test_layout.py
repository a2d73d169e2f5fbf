# SPDX-License-Identifier: Apache-2.0
"""One header, three readers: gcc, clang -target bpf and cffi must see every struct and enum of c/abi alike.

cffi compares a struct with the compiler only at its first use, and in some cases not the order of its fields;
so every struct is touched here, and its table of offsets is compared with the two compilers' BTF.
"""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import ROOT

from pipeline import _native

ABI = ROOT / "c/abi"
HEADERS = sorted(ABI.glob("*.h"))
TEXT = "\n".join(re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL) for header in HEADERS)
STRUCTS = sorted(re.findall(r"^struct\s+(\w+)\s*\{", TEXT, re.MULTILINE))
CONSTANTS = sorted(
    name
    for body in re.findall(r"^enum\s*\w*\s*\{([^}]*)\}", TEXT, re.MULTILINE)
    for name in re.findall(r"(?:^|,)\s*([A-Za-z_]\w*)", body)
)

Field = tuple[str, int, int]
Layout = tuple[int, tuple[Field, ...]]


class Btf:
    """Structs of an object file, as its compiler wrote them down."""

    def __init__(self, obj: Path) -> None:
        dump = subprocess.run(["bpftool", "-j", "btf", "dump", "file", obj], check=True, capture_output=True)
        self._types: dict[int, dict[str, Any]] = {t["id"]: t for t in json.loads(dump.stdout)["types"]}
        self._structs = {t["name"]: t for t in self._types.values() if t["kind"] == "STRUCT"}

    def layout(self, struct: str) -> Layout:
        """Size of a struct; name, offset and size of each field. KeyError if there is no such struct."""
        found = self._structs[struct]
        fields = ((m["name"], m["bits_offset"] // 8, self._size(m["type_id"])) for m in found["members"])
        return found["size"], tuple(fields)

    def _size(self, type_id: int) -> int:
        kind = self._types[type_id]
        if kind["kind"] == "ARRAY":
            return int(kind["nr_elems"]) * self._size(kind["type_id"])
        if kind["kind"] in {"TYPEDEF", "CONST", "VOLATILE", "RESTRICT"}:
            return self._size(kind["type_id"])
        return 8 if kind["kind"] == "PTR" else int(kind["size"])


def compile_c(folder: Path, compiler: tuple[str, ...], text: str) -> Path:
    """The object file of a C file that includes all of c/abi before ``text``."""
    source, obj = folder / "use.c", folder / "use.o"
    source.write_text("".join(f'#include "abi/{header.name}"\n' for header in HEADERS) + text)
    subprocess.run([*compiler, "-I", ROOT / "c", "-c", source, "-o", obj], check=True)
    return obj


def multiarch() -> str:
    """The folder of asm/types.h below /usr/include."""
    return subprocess.check_output(["gcc", "-print-multiarch"], text=True).strip()


GCC = ("gcc", "-gbtf")
BPF = ("clang", "-target", "bpf", "-g", "-O2", "-idirafter", f"/usr/include/{multiarch()}")
USES = "".join(f"struct {name} use_{name};\n" for name in STRUCTS)  # what is not used is not in the BTF


@pytest.fixture(scope="module")
def gcc(tmp_path_factory: pytest.TempPathFactory) -> Btf:
    return Btf(compile_c(tmp_path_factory.mktemp("gcc"), GCC, USES))


@pytest.fixture(scope="module")
def bpf(tmp_path_factory: pytest.TempPathFactory) -> Btf:
    return Btf(compile_c(tmp_path_factory.mktemp("bpf"), BPF, USES))


def cffi_layout(struct: str) -> Layout:
    """The struct as Python sees it. Raises cffi's own error if it and the compiler disagree."""
    ffi = _native.ffi
    kind = ffi.typeof(f"struct {struct}")
    fields = tuple((name, field.offset, ffi.sizeof(field.type)) for name, field in kind.fields)
    return ffi.sizeof(kind), fields


def test_headers_define_something() -> None:
    assert len(STRUCTS) > 20
    assert len(set(STRUCTS)) == len(STRUCTS)
    assert len(CONSTANTS) > 50


@pytest.mark.parametrize("struct", STRUCTS)
def test_struct_is_the_same_for_all_readers(struct: str, gcc: Btf, bpf: Btf) -> None:
    expected = gcc.layout(struct)
    assert bpf.layout(struct) == expected
    assert cffi_layout(struct) == expected


@pytest.mark.parametrize("struct", STRUCTS)
def test_struct_has_no_hidden_byte(struct: str, gcc: Btf) -> None:
    size, fields = gcc.layout(struct)
    end = 0
    for name, offset, length in fields:
        assert name, "anonymous members are not checked by cffi"
        assert offset == end, f"padding before {name} is not a named field"
        end = offset + length
    assert end == size, "padding at the end is not a named field"


@pytest.mark.parametrize("compiler", [GCC, BPF], ids=["gcc", "bpf"])
def test_constants_are_the_same_for_all_readers(compiler: tuple[str, ...], tmp_path: Path) -> None:
    values = {name: getattr(_native.lib, name) for name in CONSTANTS}
    checks = (f'_Static_assert({name} == {value}ll, "{name}");\n' for name, value in values.items())
    compile_c(tmp_path, compiler, "".join(checks))
