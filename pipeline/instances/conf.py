# SPDX-License-Identifier: Apache-2.0
"""Layer settings as the items of a control region (struct sl_conf_item): numbers in the units of c/abi/control.h."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline._native import lib
from pipeline.host.assignment import struct_bytes
from pipeline.host.certs import KeyPair, TicketKey
from pipeline.policy.config import Config
from pipeline.policy.model import LayerId

ConfItem = tuple[int, bytes]

_TLS_MINOR = {"1.2": 3, "1.3": 4}
_ALPN = {"http/1.1": lib.SL_ALPN_HTTP_1_1}


@dataclass(frozen=True)
class Secrets:
    """What only tls instances are given. Never logged, never written to disk."""

    key_pairs: Sequence[KeyPair] = field(default=(), repr=False)
    ticket_keys: Sequence[TicketKey] = field(default=(), repr=False)
    pool_key: bytes = field(default=b"", repr=False)   # seals connections that move between tls instances


def conf_items(config: Config, layer: LayerId, secrets: Secrets) -> list[ConfItem]:
    """The configuration of one instance of this layer."""
    return _ITEMS[layer](config, secrets)


def _ms(seconds: float) -> int:
    return min(int(seconds * 1000), 0xFFFFFFFF)


def _tcp(config: Config, _: Secrets) -> list[ConfItem]:
    tcp = config.tcp
    return [(lib.SL_CONF_TCP, struct_bytes(
        "sl_tcp_conf", idle_timeout_ms=_ms(tcp.idle_timeout), backlog=tcp.backlog,
        max_connections=tcp.max_connections, user_timeout_ms=_ms(tcp.user_timeout)))]


def _tls(config: Config, secrets: Secrets) -> list[ConfItem]:
    tls = config.tls
    items = [(lib.SL_CONF_TLS, struct_bytes(
        "sl_tls_conf", handshake_timeout_ms=_ms(tls.handshake_timeout), min_version=_TLS_MINOR[tls.min_version],
        tickets=tls.tickets, alpn_mask=sum(1 << _ALPN[name] for name in tls.alpn),
        max_connections=tls.max_connections, ticket_lifetime_s=int(tls.ticket_lifetime)))]
    for pair in secrets.key_pairs:
        items += [(lib.SL_CONF_TLS_CERT, pair.cert), (lib.SL_CONF_TLS_KEY, pair.key)]
    if tls.tickets:
        items.append((lib.SL_CONF_TLS_TICKETS, b"".join(key.packed() for key in secrets.ticket_keys)))
    items.append((lib.SL_CONF_TLS_POOL, secrets.pool_key))
    return items


def _http(config: Config, _: Secrets) -> list[ConfItem]:
    http = config.http
    return [(lib.SL_CONF_HTTP, struct_bytes(
        "sl_http_conf", max_body_bytes=http.max_body_bytes, max_head_bytes=http.max_header_bytes,
        max_fields=http.max_headers, max_target_bytes=http.max_uri_bytes, head_timeout_ms=_ms(http.header_timeout),
        body_timeout_ms=_ms(http.body_timeout), keepalive_timeout_ms=_ms(http.keepalive_timeout),
        max_requests=http.max_requests, max_connections=http.max_connections))]


def _app(config: Config, _: Secrets) -> list[ConfItem]:
    app = config.app
    return [(lib.SL_CONF_APP, struct_bytes(
        "sl_app_conf", echo=app.echo, max_requests=app.max_requests,
        root=str(app.root).encode() if app.root else b"", index=app.index.encode()))]


_ITEMS: Mapping[LayerId, Callable[[Config, Secrets], list[ConfItem]]] = {
    LayerId.TCP: _tcp, LayerId.TLS: _tls, LayerId.HTTP: _http, LayerId.APP: _app,
}
