# SPDX-License-Identifier: Apache-2.0
"""TOML with a memory for lines: kinds of values, tables whose keys are taken out once, and every problem with its
place. Knows nothing of what the keys mean.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Generic, TypeVar

from pipeline.errors import ConfigError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
N = TypeVar("N", int, float)
Path = tuple[str | int, ...]     # a value's place in the file: ("service", 0, "port")


# ---- kinds of values: each turns a TOML value into ours, or raises ValueError if it is not as `allowed` says

@dataclass(frozen=True)
class Kind(Generic[T_co]):
    allowed: str
    parse: Callable[[object], T_co]


class Hint(ValueError):
    """A ValueError whose text helps."""


def _show(value: object) -> str:
    """The value as it would stand in the file, shortened."""
    if isinstance(value, list):
        text = f"[{', '.join(map(_show, value))}]"
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = f'"{value}"' if isinstance(value, str) else str(value)
        text = "a table" if isinstance(value, dict) else text
    return text if len(text) <= 60 else text[:57] + "..."


def typed(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError
    return value


def integer(low: int, high: int) -> Kind[int]:
    return Kind(f"{low} to {high}", lambda value: within(typed(value, int), low, high))


def within(value: N, low: float, high: float) -> N:
    if not low <= value <= high:
        raise ValueError
    return value


def _measure(units: Mapping[str, float], low: float, high: float, words: str) -> Kind[float]:
    def parse(value: object) -> float:
        if isinstance(value, str):
            found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", value)
            if not found or found[2] not in units:
                raise ValueError
            return within(float(found[1]) * units[found[2]], low, high)
        return within(float(value if isinstance(value, float) else typed(value, int)), low, high)
    return Kind(words, parse)


def size(low: int, high: int) -> Kind[int]:
    units = {"B": 1, "kB": 1000, "MB": 1000**2, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    kind = _measure(units, low, high, f'bytes, or text such as "64KiB", from {low} to {high} bytes')
    return Kind(kind.allowed, lambda value: int(kind.parse(value)))


def duration(low: float, high: float) -> Kind[float]:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return _measure(units, low, high, f'seconds, or text such as "500ms", "10s", "2m"; {low:g} to {high:g} s')


def choice(*words: str) -> Kind[str]:
    def parse(value: object) -> str:
        if value not in words:
            raise Hint(_near(str(value), words))
        return str(value)
    return Kind(" or ".join(f'"{word}"' for word in words), parse)


def text_like(pattern: str, allowed: str) -> Kind[str]:
    def parse(value: object) -> str:
        if not re.fullmatch(pattern, typed(value, str)):
            raise ValueError
        return str(value)
    return Kind(allowed, parse)


def several(kind: Kind[T], least: int = 1, most: int = 64) -> Kind[tuple[T, ...]]:
    """A list of so many different values; a single value may stand without its brackets."""
    def parse(value: object) -> tuple[T, ...]:
        values = tuple(kind.parse(item) for item in (value if isinstance(value, list) else [value]))
        if not least <= len(values) <= most:
            raise Hint(f"found {len(values)} values, allowed: {least} to {most}")
        if twice := [item for item, count in Counter(values).items() if count > 1]:
            raise Hint(f"{_show(str(twice[0]))} is there twice")
        return values
    return Kind(f"a list of: {kind.allowed}", parse)


# ---- reading tables

def _near(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f'did you mean "{close[0]}"?' if close else ""


class Notes:
    """The problems found so far."""

    def __init__(self, file: str, lines: Mapping[Path, int]) -> None:
        self.file = file
        self.lines = lines
        self.found: list[ConfigError] = []

    def add(self, path: Path, message: str, hint: str = "") -> None:
        line = next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), 0)
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        self.found.append(ConfigError(message, hint=hint, file=self.file, line=line, key=key))

    def raise_any(self) -> None:
        if self.found:
            first, *others = sorted(self.found, key=lambda problem: problem.line)
            raise ConfigError(first.message, hint=first.hint, file=first.file, line=first.line, key=first.key,
                              others=others)


class Table:
    """A table of the file. Each key is taken out once; ``close`` complains about those that nobody took."""

    def __init__(self, values: object, path: Path, notes: Notes) -> None:
        self.path = path
        self.notes = notes
        self.taken: list[str] = []
        self.values: dict[str, object] = values if isinstance(values, dict) else {}
        if not isinstance(values, dict):
            notes.add(path, f"found {_show(values)}, allowed: a table")

    def take(self, key: str, kind: Kind[T], default: T, *, required: bool = False) -> T:
        """This key's value, or the default if it is not there or wrong (which is noted)."""
        self.taken.append(key)
        if key not in self.values:
            if required:
                self.note(key, "is missing", f"allowed: {kind.allowed}")
            return default
        try:
            return kind.parse(self.values[key])
        except (ValueError, TypeError) as error:
            hint = str(error) if isinstance(error, Hint) else ""
            self.note(key, f"found {_show(self.values[key])}, allowed: {kind.allowed}", hint)
            return default

    def table(self, key: str) -> Table:
        self.taken.append(key)
        return Table(self.values.get(key, {}), (*self.path, key), self.notes)

    def tables(self, key: str) -> Iterator[Table]:
        self.taken.append(key)
        values = self.values.get(key, [])
        if not isinstance(values, list):
            self.note(key, f"found {_show(values)}, allowed: a list of tables")
            values = []
        return (Table(value, (*self.path, key, n), self.notes) for n, value in enumerate(values))

    def close(self) -> None:
        for key in self.values:
            if key not in self.taken:
                known = ", ".join(self.taken)
                self.note(key, "unknown key", f"{_near(key, self.taken)} allowed: {known}".strip())

    def note(self, key: str, message: str, hint: str = "") -> None:
        self.notes.add((*self.path, key), message, hint)


_TOKEN = re.compile(r"""
      (?P<skip> [ \t\r]+ | \#[^\n]* )
    | [\[\]{}=,.\n]
    | \"{3} (?: \\. | [^\\] )*? \"{3,5} (?!\") | '{3} .*? '{3,5} (?!')
    | " (?: \\. | [^"\\\n] )* " | ' [^'\n]* '
    | [^\s\[\]{}=,."'\#]+
    """, re.VERBOSE | re.DOTALL)


class _Lines:
    """Finds the line of each key, which tomllib does not tell. The text is valid TOML: nothing is checked."""

    def __init__(self, text: str) -> None:
        self.at: dict[Path, int] = {}
        self.tokens: list[tuple[str, int]] = []
        self.n = 0
        self.last: dict[Path, int] = {}      # array of tables -> index of its latest one
        line = 1
        for token in _TOKEN.finditer(text):
            if not token["skip"]:
                self.tokens.append((token[0], line))
            line += token[0].count("\n")
        self.tokens.append(("\n", line))
        table: Path = ()
        while self.n < len(self.tokens):
            if self.token == "[":
                table = self.header()
            elif self.token != "\n":
                self.pair(table)
            self.n += 1

    @property
    def token(self) -> str:
        return self.tokens[self.n][0]

    def header(self) -> Path:
        line, double = self.tokens[self.n][1], self.tokens[self.n + 1][0] == "["
        self.n += 2 if double else 1
        keys = self.keys()
        self.n += 1 if double else 0
        path: Path = ()
        for n, key in enumerate(keys, 1):
            path = (*path, key)
            self.at.setdefault(path, line)
            if double and n == len(keys):
                self.last[path] = self.last.get(path, -1) + 1
            if path in self.last:
                path = (*path, self.last[path])
        self.at[path] = line
        return path

    def keys(self) -> list[str]:
        """A dotted key; ends on the token after it."""
        keys = [self.token.strip("\"'")]
        self.n += 1
        while self.token == ".":
            keys.append(self.tokens[self.n + 1][0].strip("\"'"))
            self.n += 2
        return keys

    def pair(self, table: Path) -> None:
        path = (*table, *self.keys())
        self.n += 1
        self.value(path)

    def value(self, path: Path) -> None:
        self.at[path] = self.tokens[self.n][1]
        if self.token not in "[{":
            while self.token not in ",]}\n":
                self.n += 1
            return
        close = "]" if self.token == "[" else "}"
        index = 0
        self.n += 1
        while self.token != close:
            if self.token in ",\n":
                self.n += 1
            elif close == "}":
                self.pair(path)
            else:
                self.value((*path, index))
                index += 1
        self.n += 1


def key_lines(text: str) -> dict[Path, int]:
    """Place of each table, key and list item in valid TOML -> its line, from 1."""
    return _Lines(text).at
