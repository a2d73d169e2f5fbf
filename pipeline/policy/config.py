# SPDX-License-Identifier: Apache-2.0
"""The config file: TOML text in, a frozen Config out, or one ConfigError with every problem of the file.

``parse_config`` reads no file: relative paths are resolved against the folder of ``name`` without looking at
the disk. examples/README.md describes the keys for people.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from hashlib import sha256
from ipaddress import ip_address, ip_network
from itertools import pairwise
from pathlib import PurePath

from pipeline.errors import ConfigError
from pipeline.policy.affinity import ACCELERATORS, Hardware
from pipeline.policy.model import (
    ADDRESSES_MAX,
    FOLLOWERS,
    HEADERS_MAX,
    NAME_LEN,
    SERVICE_MAX,
    SIDE_MAX,
    Chain,
    Driver,
    IPAddress,
    Layer,
    LayerId,
    Protocol,
    Service,
)
from pipeline.policy.settings import (
    AppSettings,
    Certificate,
    HardwareSettings,
    HttpSettings,
    Nic,
    TcpSettings,
    TlsSettings,
)
from pipeline.policy.toml import (
    Hint,
    Kind,
    Notes,
    Table,
    choice,
    duration,
    integer,
    key_lines,
    several,
    size,
    text_like,
    typed,
    within,
)

LAYERS = tuple(layer for layer in FOLLOWERS if layer is not LayerId.NONE)


@dataclass(frozen=True)
class Config:
    """A valid config file. ``layers`` are those that the chains use, from the NIC inwards."""

    file: str
    name: str
    drain_timeout: float
    boot_timeout: float        # seconds: an instance that is not ready then will never be
    nic: Nic
    services: tuple[Service, ...]
    layers: tuple[Layer, ...]
    warm: Mapping[Driver, int]         # instances without a layer that are kept ready
    tcp: TcpSettings
    tls: TlsSettings
    http: HttpSettings
    app: AppSettings
    api_group: str = ""                       # its members may use the control API, besides the owner
    metrics: tuple[str, int] | None = None    # address and port that serve /metrics, besides the API's socket
    hardware: HardwareSettings = field(default_factory=HardwareSettings)


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
    notes = Notes(name, key_lines(text))
    config = _config(Table(tree, (), notes), name)
    notes.raise_any()
    return config


# ---- kinds of values that only this file has

def _virtual_ip(value: object) -> IPAddress:
    address = ip_address(typed(value, str))
    if (address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local
            or getattr(address, "ipv4_mapped", None) or getattr(address, "scope_id", None)):
        raise Hint("not an address that clients elsewhere can use")
    return address


def _endpoint(value: object) -> tuple[str, int]:
    host, _, port = typed(value, str).rpartition(":")
    return str(ip_address(host.removeprefix("[").removesuffix("]"))), within(int(port), 1, 65535)


_BOOL = Kind("true or false", lambda value: typed(value, bool))
_PATH = Kind("a path", lambda value: PurePath(text_like(r"[^\0]+", "").parse(value)))
_FILE = text_like(r"(?!\.{1,2}$)[^/\0]{1,63}", "a file's name")
_NAME = text_like(rf"[a-z][a-z0-9-]{{0,{NAME_LEN - 2}}}", f"a-z, 0-9 and -, at most {NAME_LEN - 1} characters")
_DEVICE = text_like(r"(?!\.{1,2}$)[^\s/:]{1,15}", "an interface's name, at most 15 characters")
_DEVARGS = text_like(r"[0-9A-Za-z][^\s\0]{3,255}",
                     'what EAL calls the device, such as "0000:01:00.0", or "net_af_packet0,iface=eth0"')
_EAL = text_like(r"-[^\s\0]{1,255}", 'an argument of EAL, such as "--log-level=8"')
_NETNS = text_like(r"(?!\.{1,2}$)[^\s/]{1,255}", "a name as `ip netns` shows it")
_HOST = text_like(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?",
              "a host name in lower case")
_GROUP = text_like(r"[a-z_][a-z0-9_-]{0,31}", "a group's name")
_ENDPOINT = Kind('address and port, such as "127.0.0.1:9464" or "[::1]:9464"', _endpoint)
_VIP = Kind("an IPv4 or IPv6 address", _virtual_ip)
_ADDRESS = Kind("an IPv4 or IPv6 address", lambda value: ip_address(typed(value, str)))
_NETWORK = Kind('a network such as "10.77.0.0/24"', lambda value: ip_network(typed(value, str)))
_DRIVER = choice(*(driver.value for driver in Driver))
_PCI = text_like(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", 'a PCI address such as "0000:3d:01.0"')
CRYPTO_MEMORY = 256 << 20    # bytes of a virtual machine that may be given an accelerator: DPDK, and huge pages for it
_WANTS = {"crypto": ACCELERATORS, "qat": Hardware.QAT}
_LAYER = choice(*(layer.label for layer in LAYERS))
_CONNECTIONS = integer(1, 1 << 20)
_SHARE = Kind("a number from 0.1 to 0.95", lambda value: within(typed(value, float), 0.1, 0.95))


# ---- the content

def _config(root: Table, file: str) -> Config:
    swarm = root.table("swarm")
    name = swarm.take("name", _NAME, "swarm")
    drain_timeout = swarm.take("drain_timeout", duration(0, 86400), 30.0)
    boot_timeout = swarm.take("boot_timeout", duration(1, 3600), 30.0)
    driver = swarm.take("driver", _DRIVER, Driver.PROCESS.value)
    api_group = swarm.take("api_group", _GROUP, "")
    metrics = swarm.take("metrics", _ENDPOINT, None)
    swarm.close()
    nic = _nic(root.table("nic"))
    hardware = _hardware(root.table("hardware"))
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
    layers = [_pool(layer_id, tables[layer_id], settings[layer_id], driver) for layer_id in LAYERS]
    warm = _warm(root.table("pool"))
    root.close()
    layers = [pool for pool in layers if pool.id in used]
    return Config(file, name, drain_timeout, boot_timeout, nic, services, tuple(layers), warm, tcp, tls, http, app,
                  api_group, metrics, hardware)


def _warm(table: Table) -> Mapping[Driver, int]:
    number = integer(0, SIDE_MAX)
    warm = {Driver.PROCESS: table.take("processes", number, 0), Driver.QEMU: table.take("vms", number, 0)}
    table.close()
    return warm


def _nic(table: Table) -> Nic:
    dpdk = table.take("driver", choice("xdp", "dpdk"), "xdp") == "dpdk"
    nic = Nic(
        interface="" if dpdk else table.take("interface", _DEVICE, Nic.interface, required=True),
        devargs=table.take("devargs", _DEVARGS, "", required=True) if dpdk else "",
        eal=table.take("eal", several(_EAL, most=16), ()) if dpdk else (),
        netns=table.take("netns", _NETNS, ""),
        mtu=table.take("mtu", integer(1280, 9000), None),
        queues=table.take("queues", integer(1, 1 if dpdk else 64), None),
        networks=table.take("networks", several(_NETWORK), ()),
        gateways=table.take("gateways", several(_ADDRESS), ()))
    for gateway in nic.gateways:
        if nic.networks and not any(gateway in network for network in nic.networks):
            table.note("gateways", f"{gateway} is in none of nic.networks", "a gateway is a direct neighbour")
    if dpdk and not nic.networks:
        table.note("networks", "is missing", "the kernel does not know the networks of a NIC that DPDK drives")
    table.close()
    return nic


def _hardware(table: Table) -> HardwareSettings:
    hardware = HardwareSettings(
        allow=table.take("allow", several(_PCI, 0, 256), ()),
        vfs=table.take("vfs", integer(0, 256), 0),
        pin=table.take("pin", _BOOL, False))
    table.close()
    return hardware


def _services(root: Table) -> tuple[Service, ...]:
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


def _service(table: Table, index: int) -> Service:
    service = Service(
        name=table.take("name", _NAME, f"service-{index}", required=True),
        addresses=table.take("address", several(_VIP, most=ADDRESSES_MAX), (), required=True),
        port=table.take("port", integer(1, 65535), 0, required=True),
        chain=_chain(table),
        protocol=Protocol[table.take("protocol", choice("tcp"), "tcp").upper()],
        index=index)
    table.close()
    return service


def _chain(table: Table) -> Chain:
    labels = table.take("chain", several(_LAYER), (), required=True)
    chain = Chain(tuple(LayerId[label.upper()] for label in labels))
    if labels and (problem := chain.problem()):
        table.note("chain", problem, 'for example chain = ["tcp", "tls", "http", "app"]')
    return chain


def _pool(layer_id: LayerId, table: Table, settings: object, driver: str) -> Layer:
    """The numbers of a layer. Those that are not given fit those that are. ``driver``: the swarm's."""
    number = integer(1, SIDE_MAX)
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
    wants = _WANTS.get(table.take("wants", choice(*_WANTS), ""), 0)
    layer = Layer(
        id=layer_id, instances=wanted, min=least or 1, max=most or max(Layer.max, wanted),
        driver=Driver(table.take("driver", _DRIVER, driver)),
        memory=table.take("memory", size(64 << 20, 64 << 30), CRYPTO_MEMORY if wants else Layer.memory) & -(2 << 20),
        cpus=table.take("cpus", several(integer(0, 4095), most=4096), ()),
        wants=wants,
        autoscale=table.take("autoscale", _BOOL, False),
        target_load=table.take("target_load", _SHARE, Layer.target_load),
        cooldown=table.take("cooldown", duration(1, 86400), Layer.cooldown))
    table.close()
    made_of = (settings, layer.driver, layer.memory, layer.cpus, layer.wants)
    return replace(layer, revision=sha256(repr(made_of).encode()).hexdigest()[:12])


def _tcp(table: Table) -> TcpSettings:
    usual = TcpSettings()
    return TcpSettings(
        backlog=table.take("backlog", integer(1, 65535), usual.backlog),
        max_connections=table.take("max_connections", _CONNECTIONS, usual.max_connections),
        idle_timeout=table.take("idle_timeout", duration(0, 86400), usual.idle_timeout),
        user_timeout=table.take("user_timeout", duration(0, 3600), usual.user_timeout))


def _tls(table: Table, base: PurePath, *, needed: bool) -> TlsSettings:
    certificates = []
    for item in table.tables("certificates"):
        cert = item.take("cert", _PATH, PurePath(), required=True)
        key = item.take("key", _PATH, PurePath(), required=True)
        item.close()
        certificates.append(Certificate(base / cert, base / key))
    usual = TlsSettings()
    tls = TlsSettings(
        certificates=tuple(certificates),
        self_signed=table.take("self_signed", several(_HOST), ()),
        min_version=table.take("min_version", choice("1.2", "1.3"), usual.min_version),
        alpn=table.take("alpn", several(choice("http/1.1"), 0), usual.alpn),
        tickets=table.take("tickets", _BOOL, usual.tickets),
        ticket_lifetime=table.take("ticket_lifetime", duration(1, 604800), usual.ticket_lifetime),
        handshake_timeout=table.take("handshake_timeout", duration(0.1, 3600), usual.handshake_timeout),
        max_connections=table.take("max_connections", _CONNECTIONS, usual.max_connections))
    if needed and not table.values.get("certificates") and "self_signed" not in table.values:
        table.note("certificates", "is missing, and a chain has the layer tls",
                   'add certificates = [{cert = "c.pem", key = "k.pem"}], or to try self_signed = ["a.test"]')
    return tls


def _http(table: Table) -> HttpSettings:
    usual = HttpSettings()
    return HttpSettings(
        max_header_bytes=table.take("max_header_bytes", size(256, 16 << 10), usual.max_header_bytes),
        max_headers=table.take("max_headers", integer(1, HEADERS_MAX), usual.max_headers),
        max_body_bytes=table.take("max_body_bytes", size(0, 1 << 50), usual.max_body_bytes),
        max_uri_bytes=table.take("max_uri_bytes", size(64, 8 << 10), usual.max_uri_bytes),
        header_timeout=table.take("header_timeout", duration(0.1, 3600), usual.header_timeout),
        body_timeout=table.take("body_timeout", duration(0.1, 3600), usual.body_timeout),
        keepalive_timeout=table.take("keepalive_timeout", duration(0.1, 86400), usual.keepalive_timeout),
        max_requests=table.take("max_requests", integer(0, 1 << 30), usual.max_requests),
        max_connections=table.take("max_connections", _CONNECTIONS, usual.max_connections))


def _app(table: Table, base: PurePath, *, needed: bool) -> AppSettings:
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
