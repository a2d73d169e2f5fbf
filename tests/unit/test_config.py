# SPDX-License-Identifier: Apache-2.0
"""Config files: what is accepted, and what is said about the rest."""

import tomllib
from ipaddress import ip_address, ip_network
from pathlib import PurePath

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import ROOT

from pipeline.errors import ConfigError
from pipeline.policy.affinity import Hardware
from pipeline.policy.config import Config, key_lines, parse_config
from pipeline.policy.model import Chain, Layer, LayerId
from pipeline.policy.settings import Certificate, HardwareSettings

SMALL = """\
[nic]
interface = "eth0"
[[service]]
name = "https"
address = "10.0.0.1"
port = 443
chain = ["tcp", "tls", "http", "app"]
[layer.tls]
self_signed = "a.test"
[layer.app]
echo = true
"""
DPDK = SMALL.replace(
    'interface = "eth0"', 'driver = "dpdk"\ndevargs = "0000:01:00.0"\neal = "-l1"\nnetworks = "10.0.0.0/24"'
)


def problems(text: str) -> list[ConfigError]:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "dir/swarm.toml")
    return list(caught.value.problems)


def only_problem(text: str) -> ConfigError:
    found = problems(text)
    assert len(found) == 1, [str(problem) for problem in found]
    return found[0]


def changed(old: str, new: str) -> str:
    assert SMALL.count(old) == 1
    return SMALL.replace(old, new)


def layer(config: Config, layer_id: LayerId) -> tuple[int, int, int]:
    found = next(layer for layer in config.layers if layer.id is layer_id)
    return found.min, found.instances, found.max


def test_example() -> None:
    path = ROOT / "examples" / "https.toml"
    config = parse_config(path.read_text(), str(path))
    assert [s.name for s in config.services] == ["https", "http"]
    assert [s.port for s in config.services] == [443, 80]
    assert {a for s in config.services for a in s.addresses} == {
        ip_address("10.77.0.10"),
        ip_address("fd77::10"),
    }
    assert config.services[1].chain == Chain((LayerId.TCP, LayerId.HTTP, LayerId.APP))
    assert {p.id: p.instances for p in config.layers} == {
        LayerId.TCP: 1,
        LayerId.TLS: 2,
        LayerId.HTTP: 2,
        LayerId.APP: 2,
    }
    assert len(config.tls.self_signed) == 2
    assert config.app.root == PurePath(ROOT / "examples" / "site")
    assert {p.name for p in (ROOT / "examples" / "site").iterdir()} == {
        "index.html",
        "style.css",
        "robots.txt",
    }
    assert (config.nic.interface, config.nic.netns) == ("sl-nic0", "sl-host")


def test_a_nic_of_dpdk() -> None:
    nic = parse_config(DPDK, "f").nic
    assert (nic.interface, nic.devargs, nic.label, nic.eal) == ("", "0000:01:00.0", "0000:01:00.0", ("-l1",))


def test_defaults() -> None:
    config = parse_config(SMALL, "dir/swarm.toml")
    assert layer(config, LayerId.TCP) == (1, 1, 8)
    assert layer(config, LayerId.TLS) == (1, 2, 8)
    assert config.nic.mtu is None
    assert config.nic.networks == ()
    assert config.tls.tickets is True
    assert config.http.max_requests == 0


@pytest.mark.parametrize(
    ("given_numbers", "expected"),
    [
        ("instances = 12", (1, 12, 12)),
        ("min = 3", (3, 3, 8)),
        ("max = 1", (1, 1, 1)),
        ("min = 2\nmax = 4", (2, 2, 4)),
        ("min = 1\ninstances = 5\nmax = 64", (1, 5, 64)),
    ],
)
def test_numbers_that_are_not_given_fit_those_that_are(
    given_numbers: str, expected: tuple[int, int, int]
) -> None:
    assert layer(parse_config(f"{SMALL}[layer.http]\n{given_numbers}", "f"), LayerId.HTTP) == expected


def test_only_layers_of_chains_get_instances() -> None:
    text = changed('"tls", ', "")
    assert [p.id for p in parse_config(text, "f").layers] == [LayerId.TCP, LayerId.HTTP, LayerId.APP]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [('"500ms"', 0.5), ('"10s"', 10), ('"2m"', 120), ('"0.5 h"', 1800), ("7", 7), ("2.5", 2.5)],
)
def test_durations(value: str, seconds: float) -> None:
    config = parse_config(f"{SMALL}[layer.http]\nheader_timeout = {value}", "f")
    assert config.http.header_timeout == seconds


@pytest.mark.parametrize(
    ("value", "size"), [('"2KiB"', 2048), ('"2 kB"', 2000), ("1234", 1234), ('"1.5KiB"', 1536)]
)
def test_sizes(value: str, size: int) -> None:
    assert parse_config(f"{SMALL}[layer.http]\nmax_header_bytes = {value}", "f").http.max_header_bytes == size


def test_paths_start_at_the_file() -> None:
    text = changed('self_signed = "a.test"', 'certificates = [{cert = "a.pem", key = "/keys/a.key"}]')
    config = parse_config(text.replace("echo = true", 'root = "www"'), "conf/swarm.toml")
    assert config.tls.certificates == (Certificate(PurePath("conf/a.pem"), PurePath("/keys/a.key")),)
    assert config.app.root == PurePath("conf/www")


def test_revision_names_the_settings() -> None:
    def revisions(text: str) -> dict[LayerId, str]:
        return {p.id: p.revision for p in parse_config(text, "f").layers}

    before, after = revisions(SMALL), revisions(SMALL + "[layer.http]\nmax_headers = 7")
    assert {layer_id for layer_id in before if before[layer_id] != after[layer_id]} == {LayerId.HTTP}
    assert revisions(SMALL + "[layer.http]\ninstances = 5") == before


# what is wrong -> line, key, words of the message, words of the hint
WRONG = {
    "unknown table": (SMALL + "[layers.tcp]\n", 12, "layers", "unknown key", '"layer"'),
    "unknown layer": (SMALL + "[layer.htp]\n", 12, "layer.htp", "unknown key", '"http"'),
    "unknown key": (
        changed("interface", "queues = 1\ninterfaces"),
        3,
        "nic.interfaces",
        "unknown",
        '"interface"',
    ),
    "type": (changed("443", '"443"'), 6, "service[0].port", 'found "443", allowed: 1 to 65535', ""),
    "true is no number": (changed("443", "true"), 6, "service[0].port", "found true", ""),
    "range": (changed("443", "65536"), 6, "service[0].port", "65536, allowed: 1 to 65535", ""),
    "missing": (changed('interface = "eth0"', ""), 1, "nic.interface", "is missing", "at most 15"),
    "interface's length": (changed("eth0", "e" * 16), 2, "nic.interface", "at most 15", ""),
    "interface ..": (changed("eth0", ".."), 2, "nic.interface", "found", ""),
    "device": (DPDK.replace("0000:01:00.0", "x"), 3, "nic.devargs", "what EAL calls", ""),
    "no device": (DPDK.replace("devargs", "# "), 1, "nic.devargs", "is missing", "EAL"),
    "no networks": (DPDK.replace("networks", "# "), 1, "nic.networks", "is missing", "the kernel does not know"),
    "DPDK and an interface": (DPDK.replace("devargs", 'interface = "x"\ndevargs'), 3, "nic.interface", "unknown", ""),
    "DPDK's queues": (DPDK.replace("devargs", "queues = 2\ndevargs"), 3, "nic.queues", "allowed: 1 to 1", ""),
    "EAL's arguments": (DPDK.replace("-l1", "l1"), 4, "nic.eal", "an argument of EAL", ""),
    "a table is needed": ("nic = 3\n" + SMALL.partition("\n")[2].partition("\n")[2], 1, "nic", "a table", ""),
    "an array of tables is needed": (
        changed("[[service]]", "[service]"),
        3,
        "service",
        "a list of tables",
        "",
    ),
    "name": (changed('"https"', '"HTTPS"'), 4, "service[0].name", "found", ""),
    "long name": (changed('"https"', f'"{"a" * 16}"'), 4, "service[0].name", "at most 15", ""),
    "address": (changed("10.0.0.1", "10.0.0.256"), 5, "service[0].address", "an IPv4 or IPv6 address", ""),
    "loopback": (changed("10.0.0.1", "::1"), 5, "service[0].address", "found", "clients elsewhere"),
    "mapped": (changed("10.0.0.1", "::ffff:10.0.0.1"), 5, "service[0].address", "found", "clients elsewhere"),
    "multicast": (changed("10.0.0.1", "ff02::1"), 5, "service[0].address", "found", "clients elsewhere"),
    "zone": (changed("10.0.0.1", "fd00::1%eth0"), 5, "service[0].address", "found", "clients elsewhere"),
    "address twice": (
        changed('"10.0.0.1"', '["fd00::1", "fd00:0::1"]'),
        5,
        "service[0].address",
        "",
        "there twice",
    ),
    "no address": (changed('"10.0.0.1"', "[]"), 5, "service[0].address", "found []", "1 to 4"),
    "five addresses": (
        changed('"10.0.0.1"', str([f"10.0.0.{n}" for n in range(5)])),
        5,
        "service[0].address",
        "found",
        "found 5 values",
    ),
    "protocol": (SMALL.replace("port", 'protocol = "udp"\nport'), 6, "service[0].protocol", '"tcp"', ""),
    "layer in chain": (changed('"tls", ', '"tsl", '), 7, "service[0].chain", "found", '"tls"'),
    "layer twice": (changed('"tls", ', '"tls", "tls", '), 7, "service[0].chain", "found", "there twice"),
    "chain's start": (changed('"tcp", ', ""), 7, "service[0].chain", "tls cannot stand first", "for example"),
    "chain's order": (
        changed('"tls", "http"', '"http", "tls"'),
        7,
        "service[0].chain",
        "tls cannot stand after http",
        "",
    ),
    "chain's end": (changed(', "app"', ""), 7, "service[0].chain", "ends with http", ""),
    "certificates": (
        changed('self_signed = "a.test"', ""),
        8,
        "layer.tls.certificates",
        "is missing",
        "self_signed",
    ),
    "no certificates": (
        changed('self_signed = "a.test"', "certificates = []"),
        9,
        "layer.tls.certificates",
        "is missing",
        "self_signed",
    ),
    "certificate's key": (
        changed('self_signed = "a.test"', 'certificates = [\n  {cert = "a"},\n]'),
        10,
        "layer.tls.certificates[0].key",
        "is missing",
        "",
    ),
    "host name": (changed("a.test", "-a.test"), 9, "layer.tls.self_signed", "host name", ""),
    "TLS version": (
        changed("[layer.tls]", "[layer.tls]\nmin_version = 1.2"),
        9,
        "layer.tls.min_version",
        'found 1.2, allowed: "1.2" or "1.3"',
        "",
    ),
    "nothing to serve": (changed("echo = true", ""), 10, "layer.app.root", "is missing", "echo"),
    "order of numbers": (
        SMALL + "[layer.http]\nmax = 2\nmin = 3\n",
        14,
        "layer.http.min",
        "3 is more than max = 2",
        "min <= instances <= max",
    ),
    "too many": (SMALL + "[layer.http]\nmax = 65\n", 13, "layer.http.max", "1 to 64", ""),
    "driver": (
        SMALL + '[layer.http]\ndriver = "proces"\n',
        13,
        "layer.http.driver",
        '"process"',
        "did you mean",
    ),
    "memory of a VM": (SMALL + '[layer.http]\nmemory = "1MiB"\n', 13, "layer.http.memory", "64KiB", ""),
    "duration's unit": (
        SMALL + '[layer.http]\nbody_timeout = "5 min"\n',
        13,
        "layer.http.body_timeout",
        "seconds",
        "",
    ),
    "not finite": (
        SMALL + "[layer.http]\nbody_timeout = nan\n",
        13,
        "layer.http.body_timeout",
        "found nan",
        "",
    ),
    "size": (
        SMALL + '[layer.http]\nmax_uri_bytes = "1GiB"\n',
        13,
        "layer.http.max_uri_bytes",
        "from 64 to",
        "",
    ),
    "gateway": (
        changed('"eth0"', '"eth0"\nnetworks = "10.0.0.0/8"\ngateways = "192.0.2.1"'),
        4,
        "nic.gateways",
        "in none of",
        "neighbour",
    ),
    "network": (changed('"eth0"', '"eth0"\nnetworks = "10.0.0.1/8"'), 3, "nic.networks", "a network", ""),
}


@pytest.mark.parametrize("case", WRONG)
def test_one_mistake(case: str) -> None:
    text, line, key, message, hint = WRONG[case]
    tomllib.loads(text)
    found = problems(text)
    problem = next(problem for problem in found if problem.key == key)
    assert problem.line == line
    assert message in problem.message
    assert hint in problem.hint
    assert str(found[0]).startswith(f"dir/swarm.toml:{found[0].line}: {found[0].key}: ")
    assert all("\n" not in str(problem) for problem in found)


def test_all_mistakes_at_once_in_order_of_lines() -> None:
    text = changed("443", "0").replace("eth0", "").replace("echo", "eco")
    with pytest.raises(ConfigError) as caught:
        parse_config(text, "f")
    assert [problem.line for problem in caught.value.problems] == [2, 6, 10, 11]
    assert str(caught.value).endswith("(and 3 more problems)")
    assert caught.value.explain().count("\n") == 3
    assert caught.value.exit_code == 3


def test_services_share_addresses_but_no_port() -> None:
    other = SMALL[SMALL.index("[[service]]") : SMALL.index("[layer.tls]")]
    fine = SMALL + other.replace('"https"', '"other"').replace("443", "444")
    assert [s.index for s in parse_config(fine, "f").services] == [0, 1]
    problem = only_problem(SMALL + other.replace('"https"', '"other"'))
    assert (problem.line, problem.key) == (14, "service[1].address")
    assert 'belongs to service "https"' in problem.message
    assert only_problem(SMALL + other.replace("443", "444")).key == "service[1].name"
    without_port = (SMALL + other.replace('"https"', '"other"')).replace("port = 443", "")
    assert [problem.key for problem in problems(without_port)] == ["service[0].port", "service[1].port"]


def test_sixteen_services() -> None:
    other = SMALL[SMALL.index("[[service]]") : SMALL.index("[layer.tls]")]
    more = "".join(other.replace('"https"', f'"s{n}"').replace("443", str(n)) for n in range(1, 17))
    assert "at most 16" in only_problem(SMALL + more).message


@pytest.mark.parametrize(
    ("text", "line"), [("a = ", 1), ("a = 1\n\n[b\n", 3), ("a = 1\na = 2", 2), ('a = """\n', 2)]
)
def test_not_toml(text: str, line: int) -> None:
    problem = only_problem(text)
    assert problem.line == line
    assert problem.message.startswith("not valid TOML: ")


def test_empty() -> None:
    assert {problem.key for problem in problems("")} == {"nic.interface", "service"}


def test_networks() -> None:
    text = changed(
        '"eth0"', '"eth0"\nnetworks = ["10.0.0.0/8", "fd00::/64"]\ngateways = ["10.9.9.9", "fd00::9"]'
    )
    nic = parse_config(text, "f").nic
    assert nic.networks == (ip_network("10.0.0.0/8"), ip_network("fd00::/64"))
    assert nic.gateways == (ip_address("10.9.9.9"), ip_address("fd00::9"))


def test_key_lines() -> None:
    text = """# a = 1
top = "x # no comment" # b = 2
"quoted key" = 'it''s'
[t] # [u]
a.b = [1, # one
  [2,
   3], {x = 4, y = {z = 5}},
]
text = \"\"\"
b = 1 \\\"\"\" "
[v]\"\"\"\"
lit = '''
'c = 1' '''
[[list]]
k = 1
[list.sub]
k = 2
[[list]]
k = 1979-05-27T07:32:00Z
[[list.deep]]
k = 3.5
[[list.deep]]
k = 4
""".replace("'it''s'", "'its'")
    tomllib.loads(text)
    lines = key_lines(text)
    expected = {
        ("top",): 2,
        ("quoted key",): 3,
        ("t",): 4,
        ("t", "a", "b"): 5,
        ("t", "a", "b", 0): 5,
        ("t", "a", "b", 1, 0): 6,
        ("t", "a", "b", 1, 1): 7,
        ("t", "a", "b", 2, "y", "z"): 7,
        ("t", "text"): 9,
        ("t", "lit"): 12,
        ("list", 0): 14,
        ("list", 0, "sub", "k"): 17,
        ("list", 1, "k"): 19,
        ("list", 1, "deep", 0, "k"): 21,
        ("list", 1, "deep", 1, "k"): 23,
        ("list",): 14,
    }
    assert {path: lines.get(path) for path in expected} == expected


def paths(value: object, path: tuple[str | int, ...] = ()) -> set[tuple[str | int, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {path}.union(*(paths(item, (*path, key)) for key, item in items))


def toml(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{key}" = {toml(item)}' for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",\n".join(map(toml, value)) + "]"
    return f'"{value}"'


KEYS = st.text("ab.]=#[{ ", min_size=1, max_size=4)


@given(
    st.dictionaries(
        KEYS,
        st.recursive(
            KEYS,
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
            max_leaves=8,
        ),
        max_size=4,
    )
)
def test_key_lines_finds_every_value(tree: dict[str, object]) -> None:
    text = "".join(f'"{key}" = {toml(value)}\n' for key, value in tree.items())
    assert tomllib.loads(text) == tree
    lines = key_lines(text)
    assert lines.keys() == paths(tree) - {()}
    for path, line in lines.items():
        assert f'"{path[0]}"' in "\n".join(text.splitlines()[:line])


def test_the_swarms_driver_is_every_layers_that_names_none() -> None:
    text = SMALL + '[layer.http]\ndriver = "process"\nmemory = "1GiB"\n[swarm]\ndriver = "qemu"\n'
    layers = {layer.id.label: layer for layer in parse_config(text, "x.toml").layers}
    assert {name: layer.driver.value for name, layer in layers.items()} == {
        "tcp": "qemu", "tls": "qemu", "http": "process", "app": "qemu"}
    assert layers["http"].memory == 1 << 30


def test_hardware() -> None:
    assert parse_config(SMALL, "f").hardware == HardwareSettings()
    config = parse_config(SMALL + '[hardware]\nallow = "0000:3d:00.0"\nvfs = 4\npin = true\n', "f")
    assert config.hardware == HardwareSettings(("0000:3d:00.0",), 4, True)


def test_what_a_layer_wants() -> None:
    def app(line: str) -> Layer:
        config = parse_config(SMALL.replace("[layer.app]", f"[layer.app]\n{line}"), "f")
        return next(pool for pool in config.layers if pool.id is LayerId.APP)

    def wants(line: str) -> int:
        return app(line).wants

    assert wants("") == 0 and app("").memory == 128 << 20
    assert app('wants = "crypto"').memory == 256 << 20, "DPDK needs some"
    assert app('wants = "crypto"\nmemory = "192MiB"').memory == 192 << 20
    assert wants('wants = "qat"') == Hardware.QAT and wants('wants = "crypto"') == Hardware.QAT | Hardware.CRYPTO
    with pytest.raises(ConfigError, match="wants"):
        wants('wants = "gpu"')
    with pytest.raises(ConfigError, match="PCI address"):
        parse_config(SMALL + '[hardware]\nallow = "3d:00.0"\n', "f")
