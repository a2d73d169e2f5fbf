/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* The control region: private shared memory of one instance and the manager, carried by the instance's ivshmem
 * connection.
 *
 *   0                struct sl_control       header                          written by the manager before the instance starts
 *   assignment_off   struct sl_assignment    layer, edges, services          manager, under its seq, any number of times
 *   routes_off       struct sl_route_page [SL_EDGES_MAX]  peers on each edge manager, each under its seq
 *   status_off       struct sl_vm_status     VMStatus and counters           instance, under its seq
 *   trace_off        struct sl_trace         ring of trace events            instance
 *   conf_off         layer configuration     struct sl_conf_item ...         manager, before assignment.seq changes
 *
 * seq is odd while its writer writes: a reader copies, then accepts the copy if seq was even and is unchanged. The
 * instance trusts what the manager wrote; the manager treats all that the instance wrote as hostile.
 *
 * After a change the writer rings the other's doorbell (the manager is ivshmem peer SL_VM_MANAGER). A doorbell is a
 * hint: both also look on their own at least every SL_HEARTBEAT_NS. */
#ifndef SL_ABI_CONTROL_H
#define SL_ABI_CONTROL_H

#include "edge.h"

enum {
	SL_CONTROL_MAGIC = 0x534c4331,    /* "SLC1" */
	SL_CONTROL_LEN = 1048576,         /* bytes of the region: a power of two, as a PCI BAR must be */
	SL_CONF_LEN = 786432,             /* bytes for the layer's configuration */
	SL_HEARTBEAT_NS = 100000000,      /* an instance publishes VMStatus at least so often */
	SL_TRACE_CAP = 1024,              /* events, a power of two */
	SL_TEXT_LEN = 160,
	SL_BELL_PERIOD_NS = 1000000000,   /* a peer's doorbell that rings more than SL_BELL_RINGS_MAX times oftener than anything came */
	SL_BELL_RINGS_MAX = 200,          /* is not listened to for the rest of this period */
	SL_LATENCY_MAX = 24,              /* buckets: 2 µs to 17 s */
};

enum sl_cmd {
	SL_CMD_NONE = 0,
	SL_CMD_RUN = 1,      /* READY -> ACTIVE */
	SL_CMD_DRAIN = 2,    /* ACTIVE -> DRAINING */
	SL_CMD_STOP = 3,     /* end the process; what is open is reset */
};

/* Writer: manager. Reader: instance. */
struct sl_control {
	__u32 magic;
	__u32 abi_version;
	__u32 vm_id;
	__u32 region_len;
	__u32 assignment_off;
	__u32 routes_off;
	__u32 status_off;
	__u32 trace_off;
	__u32 conf_off;
	__u32 conf_len;        /* bytes used */
	__u32 cmd;             /* enum sl_cmd: the latest */
	__u32 cmd_seq;         /* changes with each command */
	__u32 trace_every;     /* the first layer traces one request in so many; 0 = none */
	__u32 spin_us;         /* microseconds to poll without work before sleeping */
	__u8 entropy[64];      /* fresh random bytes for this start or restore */
	__u32 entropy_seq;
	__u8 pad[4];
};
_Static_assert(sizeof(struct sl_control) == 128, "no implicit padding");

/* One edge as this instance sees it */
struct sl_edge_seat {
	__u32 edge_id;        /* as in struct sl_region; 0 = unused */
	__u32 incarnation;    /* of this instance on the edge: unique for each owner that a slot ever has */
	__u16 slot;           /* on its side */
	__u8 side;            /* enum sl_side */
	__u8 peer_layer;      /* the layer across */
	__u8 pad[4];
};
_Static_assert(sizeof(struct sl_edge_seat) == 16, "no implicit padding");

/* One service as its first layer, and each layer that has a choice of next edges, needs it */
struct sl_service_seat {
	__u8 addr[4][16];     /* virtual IPs, IPv4-mapped; all zero = unused */
	__u8 name[SL_NAME_LEN];
	__be16 port;
	__u8 proto;           /* IPPROTO_TCP, IPPROTO_UDP; 0 = unused seat */
	__s8 next_edge;       /* index of the seat in edges[] on which this service's flows go on; -1: this layer is the last */
	__u8 pad[4];
};
_Static_assert(sizeof(struct sl_service_seat) == 88, "no implicit padding");

/* What the instance is to be. Another one may follow at any time: the instance then lets go of all that it had (what is
 * still open is reset), says so by assignment_seen, and takes this one once its struct sl_grants has come. */
struct sl_assignment {
	__u32 seq;
	__u8 layer;           /* enum sl_layer_id; SL_LAYER_NONE: none, wait for another assignment */
	__u8 nb_edges;
	__u8 nb_services;
	__u8 pad;
	struct sl_edge_seat edges[SL_EDGES_MAX];
	struct sl_service_seat services[SL_SERVICE_MAX];   /* index = service number */
	__u8 nic_mac[6];      /* tcp: address of the instance's interface */
	__u16 mtu;            /* tcp: of the instance's interface */
};
_Static_assert(sizeof(struct sl_assignment) == 1552, "no implicit padding");

struct sl_route {
	__u32 incarnation;
	__u16 vm_id;
	__u16 slot;           /* on the other side of the edge */
	__u16 weight;         /* 0: no new flow; else 1 ... 65535 by affinity and capacity */
	__u8 state;           /* enum sl_vm_state */
	__u8 pad[5];
};
_Static_assert(sizeof(struct sl_route) == 16, "no implicit padding");

/* The RoutingTable as one instance needs it for one of its edges: the peers across, sorted by load and hardware
 * affinity */
struct sl_route_page {
	__u32 seq;
	__u32 epoch;          /* of the RoutingTable */
	__u32 nb_routes;
	__u32 assignment;     /* seq of the assignment that has this edge: under another one the page says nothing */
	struct sl_route routes[SL_SIDE_MAX];
};
_Static_assert(sizeof(struct sl_route_page) == 1040, "no implicit padding");

/* Why an entry, a peer or a client was turned away. Counted in struct sl_vm_status. */
enum sl_counter {
	SL_CNT_BAD_INDEX = 0,       /* an entry of no possible lap: peer quarantined */
	SL_CNT_BAD_OFFSET = 1,      /* data outside the sender's arena: peer quarantined */
	SL_CNT_BAD_LAYER = 2,       /* protocol_layer or next_vm_id is not ours: peer quarantined */
	SL_CNT_BAD_OP = 3,          /* unknown op, flag or status: peer quarantined */
	SL_CNT_BAD_FLOW = 4,        /* OPEN of an open flow, flow index out of range: peer quarantined */
	SL_CNT_BAD_WINDOW = 5,      /* more bytes than the window allows: peer quarantined */
	SL_CNT_BAD_COMPLETION = 6,  /* of an entry not outstanding: peer quarantined */
	SL_CNT_BAD_MESSAGE = 7,     /* payload of the wrong form: the flow is reset */
	SL_CNT_STALE_EPOCH = 8,     /* an entry of another incarnation: peer quarantined */
	SL_CNT_STALE_FLOW = 9,      /* entry for a flow that is over, completed and ignored */
	SL_CNT_QUARANTINED = 10,    /* peers shut out */
	SL_CNT_NO_ROUTE = 11,       /* no active receiver for a new flow */
	SL_CNT_REFUSED = 12,        /* flows refused: table full or draining */
	SL_CNT_PEER_LOST = 13,      /* peers that left with flows open */
	SL_CNT_ARENA_EMPTY = 14,    /* times a sender had to wait for a slot */
	SL_CNT_RING_FULL = 15,      /* times a sender had to wait for a ring entry */
	SL_CNT_DOORBELLS = 16,      /* rung */
	SL_CNT_WAKEUPS = 17,        /* slept and woken */
	SL_CNT_CLIENT_ERROR = 18,   /* connections whose client broke TCP, TLS or HTTP */
	SL_CNT_TIMEOUT = 19,        /* connections closed by a timeout */
	SL_CNT_RETRIED = 20,        /* requests sent to another instance after theirs died */
	SL_CNT_RESUMED = 21,        /* TLS handshakes resumed */
	SL_CNT_HANDSHAKES = 22,     /* TLS handshakes completed */
	SL_CNT_MOVED = 23,          /* connections taken over from an instance that died or drained */
	SL_CNT_MOVE_FAILED = 24,    /* connections that could not be taken over */
	SL_CNT_DOORBELL_FLOODS = 25,   /* times that a doorbell was not listened to any more */
	SL_CNT_MAX = 32,
};

/* What does an instance's bulk cryptography */
enum sl_crypto_kind {
	SL_CRYPTO_NONE = 0,           /* it has none, or has not measured yet */
	SL_CRYPTO_SOFTWARE = 1,       /* OpenSSL */
	SL_CRYPTO_MULTI_BUFFER = 2,   /* libipsec-mb */
	SL_CRYPTO_DEVICE = 3,         /* DPDK cryptodev */
};

/* What an instance measured of it at its start, on one core */
struct sl_crypto_figures {
	__u32 seal_mbps[3];           /* 10^6 bytes per second in records of 256, 1400 and 16384 bytes, AES-256-GCM */
	__u32 handshakes;             /* TLS 1.3 with ECDSA P-256, full ones, the server's share; per second */
	__u32 fallbacks;              /* times that a device failed */
	__u8 kind;                    /* enum sl_crypto_kind: in use now */
	__u8 pad[3];
};
_Static_assert(sizeof(struct sl_crypto_figures) == 24, "no implicit padding");

/* The last peer that an instance quarantined */
struct sl_shut_out {
	__u16 vm_id;
	__u16 why;       /* enum sl_counter */
	__u32 count;     /* peers quarantined so far: the rest means something if it is not 0 */
};
_Static_assert(sizeof(struct sl_shut_out) == 8, "no implicit padding");

/* Bits of hardware_affinity: what an instance has and is best with. */
enum sl_hardware {
	SL_HARDWARE_AES_NI = 0x1,       /* x86 AES instructions */
	SL_HARDWARE_VAES = 0x2,         /* their vector form */
	SL_HARDWARE_SHA_NI = 0x4,
	SL_HARDWARE_AVX512 = 0x8,
	SL_HARDWARE_ARM_CE = 0x10,      /* ARMv8 crypto extensions */
	SL_HARDWARE_GFNI = 0x20,        /* x86 Galois field instructions */
	SL_HARDWARE_QAT = 0x10000,      /* Intel QuickAssist function */
	SL_HARDWARE_CRYPTO = 0x20000,   /* another crypto accelerator, by virtio-crypto or vfio */
	SL_HARDWARE_NIC_VF = 0x40000,   /* an own virtual function of the NIC */
};

/* VMStatus. Writer: instance. Readers: manager, tools. */
struct sl_vm_status {
	__u32 seq;
	__u16 vm_id;
	__u8 state;                  /* enum sl_vm_state */
	__u8 nb_layers;
	__u8 protocol_layers[8];     /* enum sl_layer_id; none: a warm instance waits for a layer */
	__u64 heartbeat_ns;
	__u64 hardware_affinity;     /* bits of enum sl_hardware */
	__u64 oldest_ns;             /* age of the oldest answer that is begun and not complete (see latency); 0 = none */
	__u32 load;                  /* busy share of the last interval, 0 ... 1000 */
	__u32 available_capacity;    /* 1000 - load, 0 when not active */
	__u32 active_flows;          /* opened by the other side or accepted, and not over */
	__u32 queue_depth;           /* entries pending towards this instance */
	__u32 cmd_seen;              /* cmd_seq of the last command carried out */
	__u32 assignment_seen;       /* seq of the last assignment taken: nothing is left of those before it. READY tells that it is complete */
	__u32 routes_seen[SL_EDGES_MAX];   /* epoch of the last route page taken over: peers that left before it are forgotten */
	__u32 pid;                   /* in its own namespace */
	__u32 error;                 /* errno of what ended it, 0 = none */
	__u64 busy_ns;               /* thread time spent on work since start */
	__u64 requests;              /* tcp: connections; tls: connections; http, app: requests */
	__u64 bytes_in;              /* payload from the client's direction */
	__u64 bytes_out;             /* payload towards the client */
	__u64 counters[SL_CNT_MAX];  /* by enum sl_counter */
	__u64 latency[SL_LATENCY_MAX];   /* answers that took 2^n ... 2^(n + 1) µs; the first also less, the last also more. tcp: accept to
					    first answer; tls: handshake; http, app: request to end of answer */
	struct sl_crypto_figures crypto;   /* tls */
	struct sl_shut_out shut_out;
	__u32 flooded;               /* bit n: doorbell n rings without end, this second or the last one */
	__u32 pad;
	__u8 text[SL_TEXT_LEN];      /* last error in words, zero-terminated */
};
_Static_assert(sizeof(struct sl_vm_status) == 784, "no implicit padding");

enum sl_trace_point {
	SL_TRACE_ACCEPT = 1,     /* tcp: connection accepted */
	SL_TRACE_IN = 2,         /* first entry of the flow came from the front */
	SL_TRACE_NEXT = 3,       /* handed to the next layer */
	SL_TRACE_BACK = 4,       /* first answer came from the back */
	SL_TRACE_OUT = 5,        /* first answer handed towards the client */
	SL_TRACE_DONE = 6,       /* flow over */
};

struct sl_trace_event {
	__u64 request_id;        /* of the flow */
	__u64 parent_id;         /* http: the connection's request_id of a request; else 0 */
	__u64 time_ns;
	__u16 vm_id;
	__u8 layer;
	__u8 point;              /* enum sl_trace_point */
	__u32 peer_vm;           /* to or from */
};
_Static_assert(sizeof(struct sl_trace_event) == 32, "no implicit padding");

/* Writer: instance. Event n lies at n & (SL_TRACE_CAP - 1); the reader copies, then drops those older than next -
 * SL_TRACE_CAP. */
struct sl_trace {
	__u32 next;
	__u8 pad[60];
	struct sl_trace_event events[SL_TRACE_CAP];
};
_Static_assert(sizeof(struct sl_trace) == 32832, "no implicit padding");

/* An instance can open nothing. What it needs of the world outside comes as descriptors over its grants socket
 * (SOCK_SEQPACKET), one message for each assignment: this struct, cut off after nb entries, and as many descriptors
 * (SCM_RIGHTS) in the same order. Sender: the manager; in a guest its first process. */
enum sl_grant_kind {
	SL_GRANT_EDGE = 1,        /* memory of the edge with that number */
	SL_GRANT_LISTENER = 2,    /* tcp: a listening socket of the service with that number */
	SL_GRANT_ROOT = 3,        /* app: the folder of its static files */
	SL_GRANT_CONTROL = 4,     /* guest, once, before the first assignment: the control region; number: own id */
	SL_GRANT_REGISTERS = 5,   /* the same, without the guest driver: its doorbell registers */
};

enum { SL_GRANTS_MAX = 80 };

struct sl_grant {
	__u32 kind;      /* enum sl_grant_kind */
	__u32 number;
};
_Static_assert(sizeof(struct sl_grant) == 8, "no implicit padding");

struct sl_grants {
	__u32 assignment;   /* its seq */
	__u32 nb;
	struct sl_grant entries[SL_GRANTS_MAX];
};
_Static_assert(sizeof(struct sl_grants) == 648, "no implicit padding");

/* Layer configuration: items one after another, each padded to 8 bytes; type 0 ends them. Data of the items that are
 * secret is wiped by the instance once it has taken them. */
enum sl_conf_type {
	SL_CONF_END = 0,
	SL_CONF_TCP = 1,            /* struct sl_tcp_conf */
	SL_CONF_TLS = 2,            /* struct sl_tls_conf */
	SL_CONF_TLS_CERT = 3,       /* PEM chain; the key that follows belongs to it */
	SL_CONF_TLS_KEY = 4,        /* PEM private key; secret; for tls instances only */
	SL_CONF_TLS_TICKETS = 5,    /* struct sl_ticket_key [1 ... 3], the current one first; secret */
	SL_CONF_HTTP = 6,           /* struct sl_http_conf */
	SL_CONF_APP = 7,            /* struct sl_app_conf */
	SL_CONF_TLS_POOL = 8,       /* struct sl_pool_key; secret. Without it no connection moves */
};

struct sl_conf_item {
	__u32 type;     /* enum sl_conf_type */
	__u32 length;   /* bytes of data behind this struct, without padding */
};
_Static_assert(sizeof(struct sl_conf_item) == 8, "no implicit padding");

struct sl_tcp_conf {
	__u32 idle_timeout_ms;      /* no byte in either direction: reset; 0 = never */
	__u32 backlog;              /* listen(2) */
	__u32 max_connections;
	__u32 user_timeout_ms;      /* TCP_USER_TIMEOUT (RFC 5482); 0 = the kernel's */
};
_Static_assert(sizeof(struct sl_tcp_conf) == 16, "no implicit padding");

struct sl_tls_conf {
	__u32 handshake_timeout_ms;
	__u8 min_version;           /* 3 = TLS 1.2, 4 = TLS 1.3 */
	__u8 tickets;               /* 1: session tickets, RFC 8446 section 4.6.1, RFC 5077 */
	__u8 alpn_mask;             /* bit 1 << enum sl_alpn */
	__u8 pad;
	__u32 max_connections;
	__u32 ticket_lifetime_s;
};
_Static_assert(sizeof(struct sl_tls_conf) == 16, "no implicit padding");

struct sl_ticket_key {
	__u8 name[16];
	__u8 hmac_key[32];
	__u8 aes_key[32];
};
_Static_assert(sizeof(struct sl_ticket_key) == 80, "no implicit padding");

/* Seals what tls instances leave with tcp, so that another one of them can take a connection over */
struct sl_pool_key {
	__u8 key[32];
};

struct sl_http_conf {
	__u64 max_body_bytes;       /* more: 413; 0 = no limit */
	__u32 max_head_bytes;       /* request line and fields together; more: 431 (RFC 6585 section 5) */
	__u32 max_fields;           /* more: 431 */
	__u32 max_target_bytes;     /* more: 414 */
	__u32 head_timeout_ms;      /* from the first byte of a request to the end of its head; late: 408 and close */
	__u32 body_timeout_ms;      /* between two pieces of a body */
	__u32 keepalive_timeout_ms; /* between two requests */
	__u32 max_requests;         /* on one connection; 0 = no limit */
	__u32 max_connections;
};
_Static_assert(sizeof(struct sl_http_conf) == 40, "no implicit padding");

struct sl_app_conf {
	__u8 echo;                  /* 1: /echo answers with the body that was sent */
	__u8 pad[3];
	__u32 max_requests;         /* at one time */
	__u8 root[256];             /* folder of the static files, zero-terminated; empty: none. Comes opened (SL_GRANT_ROOT) */
	__u8 index[64];             /* file served for a folder, zero-terminated */
};
_Static_assert(sizeof(struct sl_app_conf) == 328, "no implicit padding");

#endif
