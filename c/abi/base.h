/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* Words that every part of the contract uses: layer and state numbers, limits.
 *
 * The c/abi headers are data only: enums and structs of __u8 ... __u64 from <linux/types.h>. gcc, clang -target bpf and
 * cffi read the same text, so: no macros in declarations, no anonymous members, no bit fields, padding is a named
 * field, a _Static_assert stands on one line. Numbers are little endian unless a type says __be. Times are
 * CLOCK_MONOTONIC ns. */
#ifndef SL_ABI_BASE_H
#define SL_ABI_BASE_H

#include <linux/types.h>

enum {
	SL_ABI_VERSION = 1,   /* one number for all of c/abi; also names the folder of the BPF pins */
	SL_CACHELINE = 64,    /* bytes */
	SL_VM_MAX = 1024,     /* VMIDs are 1 ... SL_VM_MAX - 1 */
	SL_VM_MANAGER = 0,    /* the manager's id as an ivshmem peer; never in a route */
	SL_BELLS = 16,        /* doorbells of one instance: number 0 is the manager's; its peers have one each, while there are enough */
	SL_SERVICE_MAX = 16,  /* services in one swarm */
	SL_EDGES_MAX = 8,     /* edges of one instance */
	SL_NAME_LEN = 16,     /* a layer's or a service's name with its terminating zero */
};

/* protocol_layer in RequestPacket, VMStatus and RoutingTable */
enum sl_layer_id {
	SL_LAYER_NONE = 0,
	SL_LAYER_TCP = 1,
	SL_LAYER_TLS = 2,
	SL_LAYER_HTTP = 3,
	SL_LAYER_APP = 4,
	SL_LAYER_QUIC = 5,
	SL_LAYER_HTTP3 = 6,
	SL_LAYER_DNS = 7,
	SL_LAYER_USER = 16,   /* first number for a user's own layers */
	SL_LAYER_MAX = 32,
};

/* Life cycle of an instance. Only ACTIVE gets new flows.
 *
 *   from      to        when
 *   DEFINED   BOOTING   the manager starts it
 *   BOOTING   READY     it has attached its edges and its layer is initialised; or it is warm: it has no layer yet
 *   READY     BOOTING   warm, and was given a layer
 *   READY     ACTIVE    the manager saw its heartbeat and commands SL_CMD_RUN
 *   ACTIVE    DRAINING  command SL_CMD_DRAIN: no new flow, old ones finish
 *   DRAINING  GONE      no flow left, or the deadline passed
 *   DRAINING  BOOTING   the same, and was given another layer
 *   any       FAILED    it died or broke the contract
 *   never: DRAINING -> ACTIVE (a new instance is started instead), anything out of GONE or FAILED */
enum sl_vm_state {
	SL_VM_DEFINED = 0,
	SL_VM_BOOTING = 1,
	SL_VM_READY = 2,
	SL_VM_ACTIVE = 3,
	SL_VM_DRAINING = 4,
	SL_VM_GONE = 5,
	SL_VM_FAILED = 6,
};

#endif
