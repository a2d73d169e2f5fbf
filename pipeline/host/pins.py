# SPDX-License-Identifier: Apache-2.0
"""The classifier's maps as they lie pinned on a bpffs of our own: what they hold, how they change.

Nothing here needs the program or the manager: tools read a swarm's maps when its manager is dead. Calls are
synchronous; ``set_table`` waits some 10 ms, until no packet under way uses the old table.
"""

from __future__ import annotations

import errno
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from ipaddress import IPv6Address
from itertools import chain
from mmap import mmap
from pathlib import Path
from socket import IPPROTO_TCP, htons, ntohl, ntohs
from types import TracebackType
from typing import Any, Self

from pipeline._native import ffi, lib
from pipeline.errors import ClassifierError
from pipeline.host.pin_entries import Config, FlowEntry, ServiceEntry, VmEntry
from pipeline.policy.model import Instance, IPAddress, RoutingTable, Service

MAGLEV_SIZE: int = lib.SL_MAGLEV_SIZE
LINK = "link"
NO_RIGHTS = "run it as root with CAP_BPF, CAP_NET_ADMIN and CAP_SYS_ADMIN; `swarmline doctor` checks"

MAPS = {  # name: key, value
    "config": ("__u32", "struct sl_config"),
    "services": ("struct sl_service_key", "struct sl_service"),
    "vips": ("struct sl_vip_key", "struct sl_vip"),
    "vms": ("__u32", "struct sl_vm"),
    "maglev": ("__u32", "__u32"),
    "flows": ("struct sl_flow_key", "struct sl_flow"),
    "frags": ("struct sl_frag_key", "struct sl_frag"),
    "counters": ("__u32", "struct sl_counters"),
    "xsks": ("__u32", "__u32"),
}
USER_FLOWS = "user_flows"      # made by a router that classifies in user space: in place of flows
_KINDS = {**MAPS, USER_FLOWS: ("__u32", "struct sl_lru_bucket")}
_BATCH = 4096       # entries of one read; no hash bucket has more
_MAP_TYPE_ARRAY, _F_MMAPABLE = 2, 1 << 10


def check(result: int, what: str, hint: str = "") -> int:
    """The result of a call into libbpf, or the error that it stands for."""
    if result < 0:
        raise ClassifierError(f"{what}: {os.strerror(-result)}", hint=hint)
    return result


def link_info(fd: int) -> Any:
    """What the kernel says about an XDP link (struct sl_bpf_link_info)."""
    info = ffi.new("struct sl_bpf_link_info *")
    check(lib.sl_bpf_link_info(fd, info), "read the classifier's link")
    return info


def _packed(address: IPAddress) -> bytes:
    """16 bytes, IPv4 addresses mapped into IPv6."""
    return address.packed if address.version == 6 else b"\0" * 10 + b"\xff\xff" + address.packed


def _address(packed: Any) -> IPAddress:
    address = IPv6Address(bytes(packed))
    return address.ipv4_mapped or address


def _bytes(pointer: Any) -> bytes:
    """A copy of the struct that a pointer points to."""
    return bytes(ffi.buffer(pointer))


def _service_key(address: bytes, port: int, protocol: int) -> bytes:
    """``port`` in network order."""
    return _bytes(ffi.new("struct sl_service_key *", {"addr": address, "port": port, "proto": protocol}))


class Map:
    """One BPF map behind a descriptor. Keys and values are pointers to C structs, or their bytes; the key of
    an array may be an int.
    """

    def __init__(self, name: str, fd: int) -> None:
        self.name, self.fd = name, fd
        self.key, self.value = _KINDS[name]

    def get(self, key: Any) -> Any:
        """A copy of the value, or None."""
        value = ffi.new(f"{self.value} *")
        found = lib.sl_bpf_map_lookup(self.fd, self._pointer(key), value)
        return None if found == -errno.ENOENT else check(found, f"read map {self.name}") or value

    def set(self, key: Any, value: Any) -> None:
        """Make or replace the entry."""
        done = lib.sl_bpf_map_update(self.fd, self._pointer(key), value)
        check(done, f"write map {self.name}", "the map is full" if done == -errno.E2BIG else "")

    def delete(self, key: Any) -> None:
        """Delete the entry; it is fine if there is none."""
        done = lib.sl_bpf_map_delete(self.fd, self._pointer(key))
        if done != -errno.ENOENT:
            check(done, f"delete from map {self.name}")

    def entries(self) -> Iterator[tuple[Any, Any]]:
        """Every entry; key and value are valid until the next one is asked for."""
        keys, values = ffi.new(f"{self.key}[]", _BATCH), ffi.new(f"{self.value}[]", _BATCH)
        token, last, start = ffi.new("__u64 *"), ffi.new("int *"), ffi.NULL
        while not last[0]:
            count = lib.sl_bpf_map_read(self.fd, start, token, keys, values, _BATCH, last)
            for i in range(check(count, f"read map {self.name}")):
                yield keys[i], values[i]
            start = token

    def snapshot(self) -> dict[bytes, bytes]:
        """A copy of all entries."""
        return {_bytes(ffi.addressof(k)): _bytes(ffi.addressof(v)) for k, v in self.entries()}

    def replace(self, wanted: dict[bytes, bytes]) -> None:
        """Make the map hold just these entries: first what is new or changed, then what must go."""
        current = self.snapshot()
        for key, value in wanted.items():
            if current.get(key) != value:
                self.set(key, value)
        for key in current.keys() - wanted.keys():
            self.delete(key)

    def _pointer(self, key: Any) -> Any:
        return ffi.new("__u32 *", key) if isinstance(key, int) else key


class Pins:
    """The classifier's maps, found by their pins. Readers return plain values; the manager writes."""

    def __init__(self, root: Path) -> None:
        """Raises ClassifierError if the pins are not there: no swarm uses this run-time folder."""
        self.root = root
        self._maps: dict[str, Map] = {}
        hint = "no swarm runs with this run-time folder, or you are not root"
        try:
            for name in MAPS:
                fd = check(lib.sl_bpf_pin_get(os.fsencode(root / name)), f"open {root / name}", hint)
                self._maps[name] = Map(name, fd)
        except ClassifierError:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptors. The pins stay."""
        for m in self._maps.values():
            os.close(m.fd)
        self._maps.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()

    def map_fd(self, name: str) -> int:
        """Descriptor of a map, to be handed on ("xsks" to the router). It stays this object's."""
        return self._maps[name].fd

    # ---- what it routes by --------------------------------------------------------------------------------

    def set_services(self, services: Iterable[Service]) -> None:
        """These services and no others. What no longer belongs to any goes to the kernel from now on, and its
        flows are forgotten.
        """
        keys: dict[bytes, bytes] = {}
        vips: dict[bytes, int] = {}
        for s in services:
            name = s.name.encode()[: lib.SL_NAME_LEN - 1]
            value = _bytes(ffi.new("struct sl_service *", [s.index, s.chain.layers[0], 0, name]))
            for address in map(_packed, s.addresses):
                keys[_service_key(address, htons(s.port), s.protocol)] = value
                vips[address] = min(s.index, vips.get(address, s.index))
        gone = self._maps["services"].snapshot().keys() - keys.keys()
        self._maps["services"].replace(keys)
        self._maps["vips"].replace({a: _bytes(ffi.new("struct sl_vip *", [i])) for a, i in vips.items()})
        self._configure("generation", (self._maps["config"].get(0).generation + 1) & 0xFFFF_FFFF)
        if gone:
            self._forget_flows(gone)
            for index in set(range(lib.SL_SERVICE_MAX)) - {entry.index for entry in self.services()}:
                self._maps["maglev"].delete(index)

    def _forget_flows(self, gone: set[bytes]) -> None:
        """Delete the flows of these service keys."""
        for key in self._maps["flows"].snapshot():
            flow = ffi.from_buffer("struct sl_flow_key *", key)
            if _service_key(bytes(flow.dst), flow.dport, flow.proto) in gone:
                self._maps["flows"].delete(key)

    def set_vms(self, instances: Iterable[Instance], routing: RoutingTable | None = None) -> None:
        """Every instance of every layer, and no others. Write this before a table that names a new one. A
        dead one is out of the traffic as soon as this returns, whatever the tables say. ``routing`` adds
        weights and the epoch, for people to read.
        """
        rows = {i.vm_id: _vm_row(i, routing) for i in instances}
        empty = ffi.new("struct sl_vm *")
        for vm_id, old in self._maps["vms"].entries():
            row = rows.get(vm_id, empty)
            if _bytes(row) != _bytes(ffi.addressof(old)):
                self._maps["vms"].set(vm_id, row)
        if routing:
            self._configure("epoch", routing.epoch)

    def set_table(self, service: int, slots: Sequence[int],
                  tell: Callable[[int, int], None] | None = None) -> None:
        """A service's Maglev table, MAGLEV_SIZE VMIDs (0: nobody): which instance a new flow gets. A fresh
        table is filled, then swapped in; when this returns no packet uses the old one any more. Flows that
        are known stay where they are. ``tell`` is given the service and the table's descriptor: for a
        classifier that does not see the swap.
        """
        if len(slots) != MAGLEV_SIZE:
            raise ValueError(f"a table has {MAGLEV_SIZE} slots, not {len(slots)}")
        data = slots if isinstance(slots, array) and slots.typecode == "H" else array("H", slots)
        length = ffi.sizeof("struct sl_maglev")
        fd = lib.sl_bpf_map_create(_MAP_TYPE_ARRAY, b"maglev_table", 4, length, 1, _F_MMAPABLE)
        check(fd, "make a Maglev table", NO_RIGHTS)
        try:
            with mmap(fd, length) as table:
                table[:] = data.tobytes()
            self._maps["maglev"].set(service, ffi.new("__u32 *", fd))
            if tell:
                tell(service, fd)
        finally:
            os.close(fd)

    def has_table(self, service: int) -> bool:
        """Whether it has a Maglev table."""
        return self._maps["maglev"].get(service) is not None

    def set_queues(self, nb_queues: int) -> None:
        """How many receive queues the router serves. For people to read: what is ours and comes by a queue
        without a socket is dropped by name.
        """
        if not 0 < nb_queues <= lib.SL_QUEUES_MAX:
            raise ClassifierError(f"{nb_queues} receive queues, possible are 1 to {lib.SL_QUEUES_MAX}",
                                  hint="reduce them with `ethtool -L INTERFACE combined N`")
        self._configure("nb_queues", nb_queues)

    def _configure(self, field: str, value: int) -> None:
        config = self._maps["config"].get(0)
        setattr(config, field, value)
        self._maps["config"].set(0, config)

    # ---- what it shows ------------------------------------------------------------------------------------

    def config(self) -> Config:
        """What holds for the whole swarm."""
        c = self._maps["config"].get(0)
        return Config(c.epoch, c.nb_queues)

    def services(self) -> list[ServiceEntry]:
        """By index, then address."""
        found = [ServiceEntry(ffi.string(s.name).decode(), s.index, _address(k.addr), ntohs(k.port), k.proto,
                              s.layer) for k, s in self._maps["services"].entries()]
        return sorted(found, key=lambda e: (e.index, e.address.version, e.address.packed, e.port))

    def vms(self) -> list[VmEntry]:
        """The instances, by VMID."""
        def layers(mask: int) -> tuple[int, ...]:
            return tuple(n for n in range(lib.SL_LAYER_MAX) if mask >> n & 1)

        return [VmEntry(vm_id, v.gen, v.state, v.layer, layers(v.layers), v.load, v.weight, v.capacity,
                        v.hardware_affinity) for vm_id, v in self._maps["vms"].entries() if v.layers]

    def table(self, service: int) -> array[int] | None:
        """A service's Maglev table, None if it has none."""
        map_id = self._maps["maglev"].get(service)
        if map_id is None:
            return None
        fd = lib.sl_bpf_map_get(map_id[0])
        if fd == -errno.ENOENT:     # swapped since
            return self.table(service)
        slots, table = array("H"), ffi.new("struct sl_maglev *")
        try:
            check(lib.sl_bpf_map_lookup(check(fd, "open a table"), ffi.new("__u32 *"), table), "read a table")
        finally:
            if fd >= 0:
                os.close(fd)
        slots.frombytes(_bytes(table))
        return slots

    def flows(self) -> list[FlowEntry]:
        """The flows that are remembered, oldest first."""
        valid = {(v.vm_id, v.gen) for v in self.vms() if v.state in (lib.SL_VM_ACTIVE, lib.SL_VM_DRAINING)}
        found = [_flow(k, f, valid=(f.vm_id, f.gen) in valid) for k, f in self._all_flows()]
        return sorted(found, key=lambda flow: -flow.age)

    def connections_of(self, instance: Instance) -> list[FlowEntry]:
        """Those of TCP that were last seen going to this instance, whether it takes them or not. Whether they have
        ended meanwhile is not known here.
        """
        mine = (instance.vm_id, _gen(instance))
        return [_flow(k, f, valid=False) for k, f in self._all_flows()
                if (f.vm_id, f.gen) == mine and k.proto == IPPROTO_TCP and f.ack]

    def _all_flows(self) -> Iterator[tuple[Any, Any]]:
        """Keys and values; valid until the next one is asked for."""
        return chain(self._maps["flows"].entries(), self._user_flows())

    def _user_flows(self) -> Iterator[tuple[Any, Any]]:
        """Those of a router that classifies in user space; valid until the next one is asked for."""
        fd = lib.sl_bpf_pin_get(os.fsencode(self.root / USER_FLOWS))
        if fd == -errno.ENOENT:
            return
        try:
            for _, bucket in Map(USER_FLOWS, check(fd, f"open {self.root / USER_FLOWS}")).entries():
                for tag, place in zip(bucket.tag, bucket.place, strict=True):
                    if tag:
                        yield ffi.cast("struct sl_flow_key *", place.key), ffi.cast("struct sl_flow *", place.value)
        finally:
            if fd >= 0:
                os.close(fd)

    def counters(self) -> dict[str, int]:
        """Packets by verdict since the pins were made, over all CPUs, in the order of struct sl_counters."""
        cpus = ffi.new("struct sl_counters[]", check(lib.sl_bpf_nb_cpus(), "count the CPUs"))
        check(lib.sl_bpf_map_lookup(self.map_fd("counters"), ffi.new("__u32 *"), cpus), "read map counters")
        names = [name for name, _ in ffi.typeof("struct sl_counters").fields]
        return {name: sum(getattr(cpu, name) for cpu in cpus) for name in names}

    def attached_to(self) -> int | None:
        """Index, in its own network namespace, of the interface that the program is on; None: on none."""
        fd = lib.sl_bpf_pin_get(os.fsencode(self.root / LINK))
        if fd < 0:
            return None
        try:
            return link_info(fd).ifindex or None
        finally:
            os.close(fd)

    # ---- the end ------------------------------------------------------------------------------------------

    def detach(self) -> None:
        """Take the program off the NIC; all traffic goes to the kernel. Fine if it is on none."""
        pin = self.root / LINK
        fd = lib.sl_bpf_pin_get(os.fsencode(pin))
        if fd == -errno.ENOENT:
            return
        check(fd, f"open {pin}")
        try:
            if link_info(fd).ifindex:      # 0: the interface is gone, and has taken the program along
                check(lib.sl_bpf_link_detach(fd), "detach the classifier")
        finally:
            os.close(fd)
            pin.unlink(missing_ok=True)

    def unpin(self) -> None:
        """Detach, and remove every pin of this version. Tables, flows and counters go with the last
        descriptor (the router has one of xsks).
        """
        self.detach()
        for name in _KINDS:
            (self.root / name).unlink(missing_ok=True)
        if self.root.is_dir():
            self.root.rmdir()


def _gen(instance: Instance) -> int:
    return instance.incarnation & 0xFFFFFFFF


def _flow(k: Any, f: Any, *, valid: bool) -> FlowEntry:
    ticks = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) >> lib.SL_TICK_SHIFT) - f.since & 0xFFFFFFFF
    return FlowEntry(_address(k.src), ntohs(k.sport), _address(k.dst), ntohs(k.dport), k.proto, f.vm_id, f.service,
                     (ticks << lib.SL_TICK_SHIFT) / 1e9, valid, ntohl(f.ack))


def _vm_row(instance: Instance, routing: RoutingTable | None) -> Any:
    """A struct sl_vm for the instance. Its incarnation ends the flows of whoever had this VMID before."""
    row, first = ffi.new("struct sl_vm *"), instance.layers[0]
    row.gen, row.state, row.layer = _gen(instance), instance.state, first
    row.layers = sum(1 << layer for layer in instance.layers)
    if routing:
        row.weight = next((r.weight for r in routing.of(first) if r.vm_id == instance.vm_id), 0)
    if instance.status:
        row.load = min(max(instance.status.load, 0), 1000)
        row.capacity = min(max(instance.status.available_capacity, 0), 1000)
        row.hardware_affinity = instance.status.hardware_affinity
    return row
