# SPDX-License-Identifier: Apache-2.0
"""The config file: TOML text in, a frozen Config out, or one ConfigError with every problem of the file.

``parse_config`` reads no file: relative paths are resolved against the folder of ``name`` without looking at
the disk. examples/README.md describes the keys for people.
"""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import PurePath
from typing import Generic, TypeVar

from pipeline.errors import ConfigError
from pipeline.policy.model import (
    ADDRESSES_MAX,
    FOLLOWERS,
    HEADERS_MAX,
    NAME_LEN,
    SERVICE_MAX,
    SIDE_MAX,
    AppSettings,
    Certificate,
    Chain,
    Driver,
    HttpSettings,
    IPAddress,
    Layer,
    LayerId,
    Nic,
    Protocol,
    Service,
    TcpSettings,
    TlsSettings,
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
N = TypeVar("N", int, float)
Path = tuple[str | int, ...]     # a value's place in the file: ("service", 0, "port")

LAYERS = tuple(layer for layer in FOLLOWERS if layer is not LayerId.NONE)


@dataclass(frozen=True)
class Config:
    """A valid config file. ``layers`` are those that the chains use, from the NIC inwards."""

    file: str
    name: str
    drain_timeout: float
    nic: Nic
    services: tuple[Service, ...]
    layers: tuple[Layer, ...]
    tcp: TcpSettings
    tls: TlsSettings
    http: HttpSettings
    app: AppSettings


def parse_config(text: str, name: str) -> Config:
    """The Config in this text. ``name`` is the file's path: it is named in messages, and its folder is where
    relative paths start. Raises ConfigError with all problems.
    """
    try:
        tree = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.fullmatch(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", str(error), re.DOTALL)
        message, line = (found[1], int(found[2] or text.count("\n") + 1)) if found else (str(error), 0)
        raise ConfigError(f"not valid TOML: {message}", file=name, line=line) from None
    notes = _Notes(name, key_lines(text))
    config = _config(_Table(tree, (), notes), name)
    notes.raise_any()
    return config


# ---- kinds of values: each turns a TOML value into ours, or raises ValueError if it is not as `allowed` says

@dataclass(frozen=True)
class _Kind(Generic[T_co]):
    allowed: str
    parse: Callable[[object], T_co]


class _Hint(ValueError):
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


def _typed(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise ValueError
    return value


def _integer(low: int, high: int) -> _Kind[int]:
    return _Kind(f"{low} to {high}", lambda value: _within(_typed(value, int), low, high))


def _within(value: N, low: float, high: float) -> N:
    if not low <= value <= high:
        raise ValueError
    return value


def _measure(units: Mapping[str, float], low: float, high: float, words: str) -> _Kind[float]:
    def parse(value: object) -> float:
        if isinstance(value, str):
            found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", value)
            if not found or found[2] not in units:
                raise ValueError
            return _within(float(found[1]) * units[found[2]], low, high)
        return _within(float(value if isinstance(value, float) else _typed(value, int)), low, high)
    return _Kind(words, parse)


def _size(low: int, high: int) -> _Kind[int]:
    units = {"B": 1, "kB": 1000, "MB": 1000**2, "KiB": 1 << 10, "MiB": 1 << 20}
    kind = _measure(units, low, high, f'bytes, or text such as "64KiB", from {low} to {high} bytes')
    return _Kind(kind.allowed, lambda value: int(kind.parse(value)))


def _duration(low: float, high: float) -> _Kind[float]:
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
    return _measure(units, low, high, f'seconds, or text such as "500ms", "10s", "2m"; {low:g} to {high:g} s')


def _choice(*words: str) -> _Kind[str]:
    def parse(value: object) -> str:
        if value not in words:
            raise _Hint(_near(str(value), words))
        return str(value)
    return _Kind(" or ".join(f'"{word}"' for word in words), parse)


def _text(pattern: str, allowed: str) -> _Kind[str]:
    def parse(value: object) -> str:
        if not re.fullmatch(pattern, _typed(value, str)):
            raise ValueError
        return str(value)
    return _Kind(allowed, parse)


def _several(kind: _Kind[T], least: int = 1, most: int = 64) -> _Kind[tuple[T, ...]]:
    """A list of so many different values; a single value may stand without its brackets."""
    def parse(value: object) -> tuple[T, ...]:
        values = tuple(kind.parse(item) for item in (value if isinstance(value, list) else [value]))
        if not least <= len(values) <= most:
            raise _Hint(f"found {len(values)} values, allowed: {least} to {most}")
        if twice := [item for item, count in Counter(values).items() if count > 1]:
            raise _Hint(f"{_show(str(twice[0]))} is there twice")
        return values
    return _Kind(f"a list of: {kind.allowed}", parse)


def _virtual_ip(value: object) -> IPAddress:
    address = ip_address(_typed(value, str))
    if (address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local
            or getattr(address, "ipv4_mapped", None) or getattr(address, "scope_id", None)):
        raise _Hint("not an address that clients elsewhere can use")
    return address


_BOOL = _Kind("true or false", lambda value: _typed(value, bool))
_PATH = _Kind("a path", lambda value: PurePath(_text(r"[^\0]+", "").parse(value)))
_FILE = _text(r"(?!\.{1,2}$)[^/\0]{1,63}", "a file's name")
_NAME = _text(rf"[a-z][a-z0-9-]{{0,{NAME_LEN - 2}}}", f"a-z, 0-9 and -, at most {NAME_LEN - 1} characters")
_DEVICE = _text(r"(?!\.{1,2}$)[^\s/:]{1,15}", "an interface's name, at most 15 characters")
_NETNS = _text(r"(?!\.{1,2}$)[^\s/]{1,255}", "a name as `ip netns` shows it")
_HOST = _text(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
              "a host name in lower case")
_VIP = _Kind("an IPv4 or IPv6 address", _virtual_ip)
_ADDRESS = _Kind("an IPv4 or IPv6 address", lambda value: ip_address(_typed(value, str)))
_NETWORK = _Kind('a network such as "10.77.0.0/24"', lambda value: ip_network(_typed(value, str)))
_LAYER = _choice(*(layer.label for layer in LAYERS))
_CONNECTIONS = _integer(1, 1 << 20)
_SHARE = _Kind("a number from 0.1 to 0.95", lambda value: _within(_typed(value, float), 0.1, 0.95))


# ---- reading tables

def _near(word: str, known: Iterable[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f'did you mean "{close[0]}"?' if close else ""


class _Notes:
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


class _Table:
    """A table of the file. Each key is taken out once; ``close`` complains about those that nobody took."""

    def __init__(self, values: object, path: Path, notes: _Notes) -> None:
        self.path = path
        self.notes = notes
        self.taken: list[str] = []
        self.values: dict[str, object] = values if isinstance(values, dict) else {}
        if not isinstance(values, dict):
            notes.add(path, f"found {_show(values)}, allowed: a table")

    def take(self, key: str, kind: _Kind[T], default: T, *, required: bool = False) -> T:
        """This key's value, or the default if it is not there or wrong (which is noted)."""
        self.taken.append(key)
        if key not in self.values:
            if required:
                self.note(key, "is missing", f"allowed: {kind.allowed}")
            return default
        try:
            return kind.parse(self.values[key])
        except (ValueError, TypeError) as error:
            hint = str(error) if isinstance(error, _Hint) else ""
            self.note(key, f"found {_show(self.values[key])}, allowed: {kind.allowed}", hint)
            return default

    def table(self, key: str) -> _Table:
        self.taken.append(key)
        return _Table(self.values.get(key, {}), (*self.path, key), self.notes)

    def tables(self, key: str) -> Iterator[_Table]:
        self.taken.append(key)
        values = self.values.get(key, [])
        if not isinstance(values, list):
            self.note(key, f"found {_show(values)}, allowed: a list of tables")
            values = []
        return (_Table(value, (*self.path, key, n), self.notes) for n, value in enumerate(values))

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


# ---- the content

def _config(root: _Table, file: str) -> Config:
    swarm = root.table("swarm")
    name = swarm.take("name", _NAME, "swarm")
    drain_timeout = swarm.take("drain_timeout", _duration(0, 86400), 30.0)
    swarm.close()
    nic = _nic(root.table("nic"))
    services = _services(root)
    used = {layer for service in services for layer in service.chain.layers}
    base = PurePath(file).parent
    layer = root.table("layer")
    tables = {layer_id: layer.table(layer_id.label) for layer_id in LAYERS}
    layer.close()
    tcp = _tcp(tables[LayerId.TCP])
    tls = _tls(tables[LayerId.TLS], base, needed=LayerId.TLS in used)
    http = _http(tables[LayerId.HTTP])
    app = _app(tables[LayerId.APP], base, needed=LayerId.APP in used)
    settings: dict[LayerId, object] = {
        LayerId.TCP: tcp, LayerId.TLS: tls, LayerId.HTTP: http, LayerId.APP: app}
    layers = [_pool(layer_id, tables[layer_id], settings[layer_id]) for layer_id in LAYERS]
    root.close()
    layers = [pool for pool in layers if pool.id in used]
    return Config(file, name, drain_timeout, nic, services, tuple(layers), tcp, tls, http, app)


def _nic(table: _Table) -> Nic:
    nic = Nic(
        interface=table.take("interface", _DEVICE, Nic.interface, required=True),
        netns=table.take("netns", _NETNS, ""),
        mtu=table.take("mtu", _integer(1280, 9000), None),
        queues=table.take("queues", _integer(1, 64), None),
        networks=table.take("networks", _several(_NETWORK), ()),
        gateways=table.take("gateways", _several(_ADDRESS), ()))
    for gateway in nic.gateways:
        if nic.networks and not any(gateway in network for network in nic.networks):
            table.note("gateways", f"{gateway} is in none of nic.networks", "a gateway is a direct neighbour")
    table.close()
    return nic


def _services(root: _Table) -> tuple[Service, ...]:
    services: list[Service] = []
    names: set[str] = set()
    used: dict[tuple[IPAddress, Protocol, int], str] = {}
    for index, table in enumerate(root.tables("service")):
        service = _service(table, index)
        services.append(service)
        if service.name in names:
            table.note("name", f'a second service "{service.name}"', "names of services are unique")
        names.add(service.name)
        for address in service.addresses:
            owner = used.setdefault((address, service.protocol, service.port), service.name)
            if owner != service.name and service.port:
                table.note("address", f'{address} port {service.port} belongs to service "{owner}" already')
    if not services and "service" not in root.values:
        root.note("service", "is missing", "a swarm needs at least one [[service]]")
    if len(services) > SERVICE_MAX:
        root.note("service", f"found {len(services)} services, allowed: at most {SERVICE_MAX}")
    return tuple(services)


def _service(table: _Table, index: int) -> Service:
    service = Service(
        name=table.take("name", _NAME, f"service-{index}", required=True),
        addresses=table.take("address", _several(_VIP, most=ADDRESSES_MAX), (), required=True),
        port=table.take("port", _integer(1, 65535), 0, required=True),
        chain=_chain(table),
        protocol=Protocol[table.take("protocol", _choice("tcp"), "tcp").upper()],
        index=index)
    table.close()
    return service


def _chain(table: _Table) -> Chain:
    labels = table.take("chain", _several(_LAYER), (), required=True)
    chain = Chain(tuple(LayerId[label.upper()] for label in labels))
    if labels and (problem := chain.problem()):
        table.note("chain", problem, 'for example chain = ["tcp", "tls", "http", "app"]')
    return chain


def _pool(layer_id: LayerId, table: _Table, settings: object) -> Layer:
    """The numbers of a layer. Those that are not given fit those that are."""
    number = _integer(1, SIDE_MAX)
    least = table.take("min", number, None)
    wanted = table.take("instances", number, None)
    most = table.take("max", number, None)
    given = [(key, value) for key, value in (("min", least), ("instances", wanted), ("max", most)) if value]
    for (low_key, low), (high_key, high) in pairwise(given):
        if low > high:
            table.note(low_key, f"{low_key} = {low} is more than {high_key} = {high}",
                       "needed: min <= instances <= max")
    usual = 1 if layer_id is LayerId.TCP else 2
    wanted = wanted or max(least or 1, min(usual, most or usual))
    layer = Layer(
        id=layer_id, instances=wanted, min=least or 1, max=most or max(Layer.max, wanted),
        driver=Driver(table.take("driver", _choice(Driver.PROCESS.value), Driver.PROCESS.value)),
        revision=sha256(repr(settings).encode()).hexdigest()[:12],
        autoscale=table.take("autoscale", _BOOL, False),
        target_load=table.take("target_load", _SHARE, Layer.target_load),
        cooldown=table.take("cooldown", _duration(1, 86400), Layer.cooldown))
    table.close()
    return layer


def _tcp(table: _Table) -> TcpSettings:
    usual = TcpSettings()
    return TcpSettings(
        backlog=table.take("backlog", _integer(1, 65535), usual.backlog),
        max_connections=table.take("max_connections", _CONNECTIONS, usual.max_connections),
        idle_timeout=table.take("idle_timeout", _duration(0, 86400), usual.idle_timeout),
        user_timeout=table.take("user_timeout", _duration(0, 3600), usual.user_timeout))


def _tls(table: _Table, base: PurePath, *, needed: bool) -> TlsSettings:
    certificates = []
    for item in table.tables("certificates"):
        cert = item.take("cert", _PATH, PurePath(), required=True)
        key = item.take("key", _PATH, PurePath(), required=True)
        item.close()
        certificates.append(Certificate(base / cert, base / key))
    usual = TlsSettings()
    tls = TlsSettings(
        certificates=tuple(certificates),
        self_signed=table.take("self_signed", _several(_HOST), ()),
        min_version=table.take("min_version", _choice("1.2", "1.3"), usual.min_version),
        alpn=table.take("alpn", _several(_choice("http/1.1"), 0), usual.alpn),
        tickets=table.take("tickets", _BOOL, usual.tickets),
        ticket_lifetime=table.take("ticket_lifetime", _duration(1, 604800), usual.ticket_lifetime),
        handshake_timeout=table.take("handshake_timeout", _duration(0.1, 3600), usual.handshake_timeout),
        max_connections=table.take("max_connections", _CONNECTIONS, usual.max_connections))
    if needed and not table.values.get("certificates") and "self_signed" not in table.values:
        table.note("certificates", "is missing, and a chain has the layer tls",
                   'add certificates = [{cert = "c.pem", key = "k.pem"}], or to try self_signed = ["a.test"]')
    return tls


def _http(table: _Table) -> HttpSettings:
    usual = HttpSettings()
    return HttpSettings(
        max_header_bytes=table.take("max_header_bytes", _size(256, 16 << 10), usual.max_header_bytes),
        max_headers=table.take("max_headers", _integer(1, HEADERS_MAX), usual.max_headers),
        max_body_bytes=table.take("max_body_bytes", _size(0, 1 << 50), usual.max_body_bytes),
        max_uri_bytes=table.take("max_uri_bytes", _size(64, 8 << 10), usual.max_uri_bytes),
        header_timeout=table.take("header_timeout", _duration(0.1, 3600), usual.header_timeout),
        body_timeout=table.take("body_timeout", _duration(0.1, 3600), usual.body_timeout),
        keepalive_timeout=table.take("keepalive_timeout", _duration(0.1, 86400), usual.keepalive_timeout),
        max_requests=table.take("max_requests", _integer(0, 1 << 30), usual.max_requests),
        max_connections=table.take("max_connections", _CONNECTIONS, usual.max_connections))


def _app(table: _Table, base: PurePath, *, needed: bool) -> AppSettings:
    root = table.take("root", _PATH, None)
    usual = AppSettings()
    app = AppSettings(
        root=base / root if root else None,
        index=table.take("index", _FILE, usual.index),
        echo=table.take("echo", _BOOL, usual.echo),
        max_requests=table.take("max_requests", _CONNECTIONS, usual.max_requests))
    if needed and not app.echo and "root" not in table.values:
        table.note("root", "is missing, and a chain has the layer app", 'add root = "folder", or echo = true')
    return app
