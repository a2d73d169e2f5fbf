/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* What the manager and the router share: control messages, counters, and the addresses an instance sees as its next
 * hop.
 *
 * Control: the router listens on RUN_DIR/router.sock (SOCK_SEQPACKET, only root may connect) and takes several
 * connections, so that a restarted manager just connects again. One struct sl_rtr_request per packet, one struct
 * sl_rtr_reply for each, in order. PORT_ADD and TABLE_SET carry exactly one file descriptor by SCM_RIGHTS,
 * PORT_ADD_VHOST at most one, every other request none. A request of wrong size, version or descriptor count, or with a
 * field set that its type does not use, gets -EINVAL and changes nothing.
 *
 * A new router knows nothing: the manager repeats VIP_ADD, NET_ADD and PORT_ADD(_VHOST). All overwrite, so repeating is
 * harmless. Addresses are 16 bytes in network order, IPv4 as ::ffff:a.b.c.d; an IPv4 prefix /n is therefore prefix_len
 * 96 + n. */
#ifndef SL_ABI_ROUTER_H
#define SL_ABI_ROUTER_H

#include "base.h"

enum {
	SL_RTR_VIP_MAX = 64,                  /* virtual IPs: slots 0 ... 63, so that a set of them is one __u64 */
	SL_RTR_NET_MAX = 32,                  /* routes */
	SL_RTR_MTU_MAX = 9216,                /* bytes of IP packet */
	SL_RTR_COUNTERS_MAGIC = 0x534c5243,   /* "SLRC" */
};

/* An instance's tap has the NIC's MAC (inbound frames need no rewriting). Its default routes lead to these next hops,
 * with permanent neighbour entries of this MAC; nobody answers for them. Big-endian 16-bit words of 02:73:6c:00:00:01,
 * 169.254.77.1, fe80::1. */
enum {
	SL_RTR_MAC_0 = 0x0273,
	SL_RTR_MAC_1 = 0x6c00,
	SL_RTR_MAC_2 = 0x0001,
	SL_RTR_NEXTHOP4_0 = 0xa9fe,
	SL_RTR_NEXTHOP4_1 = 0x4d01,
	SL_RTR_NEXTHOP6_0 = 0xfe80,
	SL_RTR_NEXTHOP6_7 = 0x0001,
};

/* type of a request: the fields that it uses; its errors besides -EINVAL */
enum sl_rtr_type {
	SL_RTR_PING = 1,        /* none; the reply is filled for every type */
	SL_RTR_PORT_ADD = 2,    /* vm_id, vips, a tap's fd (IFF_TAP | IFF_NO_PI, no vnet header); replaces the port */
	SL_RTR_PORT_DEL = 3,    /* vm_id; -ENOENT: it has no port */
	SL_RTR_VIP_ADD = 4,     /* slot, addr; replaces the slot's address. -EEXIST: another slot has this address */
	SL_RTR_VIP_DEL = 5,     /* slot; -ENOENT: it is empty */
	SL_RTR_NET_ADD = 6,     /* addr, prefix_len, gateway (all zero: on-link); replaces the same prefix. -ENOSPC */
	SL_RTR_NET_CLEAR = 7,   /* none; forgets all routes */
	SL_RTR_PORT_ADD_VHOST = 8,   /* vm_id, vips; a virtual machine's virtio-net device, see below; replaces the
	                              * port, but one that is a client stays, with its link */
	SL_RTR_TABLE_SET = 9,   /* slot: index of a service, and the fd of its new map of one struct sl_maglev. For the
	                         * classifier in user space; -EOPNOTSUPP: the kernel runs it. A new router reads the
	                         * tables itself, before it answers */
	SL_RTR_RESET = 10,      /* slot, addr, client_port, service_port, tcp_seq: sends a client a reset, for an instance
	                         * that can not. -ENOENT: the slot is empty; -ENETUNREACH: no route; -EAGAIN: the neighbour
	                         * is not known, or the NIC is full */
};

/* A vhost-user port (PORT_ADD_VHOST).
 *
 * Without a descriptor the router is the client: it connects to RUN_DIR/vhost/VM_ID/net and, whenever that link ends,
 * again, after 20 ms, later after at most 160 ms. QEMU listens (-chardev socket,server=on,wait=off). That is what heals
 * fastest: a router that was started again is back in the link as soon as it has its ports, a QEMU that was started
 * again as soon as it listens, while the other way round QEMU waits a second between two tries (reconnect=1). QEMU waits
 * at start, or in netdev_add, until the router has connected.
 * The router makes RUN_DIR/vhost, the manager the folder in it; its owner must be the user as which QEMU listens, and the
 * router's group must be able to reach the socket and to write it.
 *
 * With a descriptor, a UNIX stream socket that listens, the router is the server; the caller hands it over, and should
 * keep a copy for the next router.
 *
 * What a peer must do: offer memory by a memfd that has F_SEAL_SHRINK (QEMU: memory-backend-memfd, share=on, which
 * seals), virtio 1.0 or later. Offloads are not offered: frames are whole and their checksums complete. */

/* Writer: manager. Reader: router. Fields that the type does not use are zero. */
struct sl_rtr_request {
	__u16 version;       /* SL_ABI_VERSION */
	__u16 type;          /* enum sl_rtr_type */
	__u32 seq;           /* any number; the reply repeats it */
	__u16 vm_id;         /* 1 ... SL_VM_MAX - 1 */
	__u8 slot;           /* of a virtual IP, 0 ... SL_RTR_VIP_MAX - 1 */
	__u8 prefix_len;     /* 0 ... 128 bits; bits of addr beyond it are zero */
	__u32 tcp_seq;       /* sequence number: what the client expects next */
	__u64 vips;          /* bit n: this instance may send from the virtual IP in slot n */
	__u8 addr[16];       /* virtual IP, the route's prefix, or the client */
	__u8 gateway[16];    /* on-link neighbour that takes frames for addr/prefix_len */
	__u16 client_port;
	__u16 service_port;
	__u8 pad[4];
};
_Static_assert(sizeof(struct sl_rtr_request) == 64, "one packet");

/* Writer: router. Reader: manager. */
struct sl_rtr_reply {
	__u16 version;       /* SL_ABI_VERSION of the router */
	__u16 type;          /* of the request */
	__u32 seq;           /* of the request */
	__s32 status;        /* 0 or -errno */
	__u32 pid;           /* of the router */
	__u64 start_ns;      /* when this router started: another value means that it knows nothing any more */
	__u32 nb_port;       /* ports, virtual IPs and routes that it knows after the request */
	__u16 nb_vip;
	__u16 nb_net;
	__u16 mtu;           /* of the NIC */
	__u16 nb_queue;      /* AF_XDP sockets, or queues of DPDK */
	__u8 mac[6];         /* of the NIC; the taps must have it too */
	__u8 pad[22];
};
_Static_assert(sizeof(struct sl_rtr_reply) == 64, "one packet");

/* Index of a counter in total[]. Each frame from the NIC is counted in IN, and in exactly one of IN_FLOW, IN_ARP, IN_ND
 * and the first group of DROP_; each frame from an instance in OUT, and in one of OUT_SENT and the second group, later
 * if it waits for its neighbour. NIC_FULL also counts the router's own questions and answers. */
enum sl_rtr_counter {
	/* frames from the NIC */
	SL_RTR_IN = 0,                    /* all that the classifier handed over */
	SL_RTR_IN_FLOW = 1,               /* written to an instance's port */
	SL_RTR_IN_ARP = 2,                /* ARP that the router answered or learnt from */
	SL_RTR_IN_ND = 3,                 /* neighbour discovery, the same */
	SL_RTR_DROP_NO_META = 4,          /* no verdict in front of the frame: not from our classifier */
	SL_RTR_DROP_BAD_META = 5,         /* a verdict that cannot be: kind, offset or vm_id out of range */
	SL_RTR_DROP_OVERSIZE = 6,         /* longer than SL_RTR_MTU_MAX allows */
	SL_RTR_DROP_NO_PORT = 7,          /* vm_id has no port (any more) */
	SL_RTR_DROP_PORT_FULL = 8,        /* the port took no more at the moment */
	SL_RTR_DROP_PORT_ERROR = 9,       /* the port refused, for instance a tap that is down */
	SL_RTR_DROP_BAD_ARP = 10,         /* truncated or contradictory ARP */
	SL_RTR_DROP_BAD_ND = 11,          /* truncated, checksum or hop limit wrong: RFC 4861 section 7.1 */
	SL_RTR_DROP_UNWANTED = 12,        /* ARP or ND about no virtual IP, or an answer that nobody asked for */
	/* frames from instances */
	SL_RTR_OUT = 13,                  /* all that instances sent */
	SL_RTR_OUT_SENT = 14,             /* given to the NIC; also those that had to wait for their neighbour */
	SL_RTR_DROP_NOISE = 15,           /* link-layer multicast: an instance's own ND, MLD, DAD */
	SL_RTR_DROP_NOT_IP = 16,          /* neither IPv4 nor IPv6: ARP, tagged, unknown */
	SL_RTR_DROP_MALFORMED = 17,       /* truncated, or lengths that contradict */
	SL_RTR_DROP_TOO_BIG = 18,         /* longer than the NIC's MTU */
	SL_RTR_DROP_SPOOFED = 19,         /* source is not a virtual IP of this instance */
	SL_RTR_DROP_FORGED_ND = 20,       /* IPv6 hop limit 255, which only neighbour discovery needs */
	SL_RTR_DROP_NO_ROUTE = 21,        /* no network matches, or the destination is multicast */
	SL_RTR_DROP_NEIGH_BUSY = 22,      /* too many neighbours being asked for, or too many frames waiting */
	SL_RTR_DROP_UNRESOLVED = 23,      /* the neighbour did not answer */
	SL_RTR_DROP_NIC_FULL = 24,        /* the NIC's queue took no more */
	/* neighbours */
	SL_RTR_ANSWERED = 25,             /* ARP replies and neighbour advertisements sent for virtual IPs */
	SL_RTR_ASKED = 26,                /* ARP requests and neighbour solicitations sent */
	SL_RTR_NEIGH_LEARNT = 27,         /* new entries */
	SL_RTR_NEIGH_EVICTED = 28,        /* entries that had to make room */
	SL_RTR_NEIGH_LOST = 29,           /* entries that did not answer any more */
	/* the rest */
	SL_RTR_PORT_LOST = 30,            /* ports closed because their tap vanished */
	SL_RTR_BAD_REQUEST = 31,          /* control requests refused */
	SL_RTR_NIC_DROPPED = 32,          /* the kernel's count at the AF_XDP sockets: frame too long */
	SL_RTR_NIC_RING_FULL = 33,        /* the same: the router was too slow to take it */
	SL_RTR_NIC_FILL_EMPTY = 34,       /* the same: no free chunk to receive into */
	SL_RTR_DROP_REFUSAL = 35,         /* a reset that answers a SYN: its instance is dying, the next SYN finds another */
	SL_RTR_LINK_UP = 36,              /* links of virtual machines that came up */
	SL_RTR_LINK_LOST = 37,            /* that ended, for whatever reason */
	SL_RTR_VIOLATION = 38,            /* by guests or their QEMUs, each of which ended a ring or a link */
	SL_RTR_RESETS = 39,               /* sent to clients of virtual machines that died */
	SL_RTR_COUNTER_NB = 40,
	SL_RTR_COUNTER_CAP = 56,          /* room for more names without a new layout */
};

/* State of a port's link. */
enum sl_rtr_link {
	SL_RTR_LINK_NONE = 0,             /* it needs none: a tap */
	SL_RTR_LINK_WAITING = 1,          /* for the virtual machine */
	SL_RTR_LINK_IS_UP = 2,
	SL_RTR_LINK_QUARANTINE = 3,       /* after a violation, for 0.1 to 10 s, longer each time */
};

/* Why a virtual machine's ring is stopped until its driver starts it again (RING_, but not SETUP), or why its link was
 * ended (all others). */
enum sl_rtr_violation {
	SL_RTR_VIOLATION_NONE = 0,
	SL_RTR_VIOLATION_RING_JUMP = 1,        /* more buffers made available than the ring holds */
	SL_RTR_VIOLATION_RING_INDEX = 2,       /* a descriptor's number beyond the ring */
	SL_RTR_VIOLATION_RING_CHAIN = 3,       /* a chain that loops or is too long */
	SL_RTR_VIOLATION_RING_FLAGS = 4,       /* indirect, or readable where writable is due or reverse */
	SL_RTR_VIOLATION_RING_LENGTH = 5,      /* a descriptor without length */
	SL_RTR_VIOLATION_RING_ADDRESS = 6,     /* a range that is not inside one region */
	SL_RTR_VIOLATION_RING_SETUP = 7,       /* ring not in the guest's memory, misaligned, no size, legacy */
	SL_RTR_VIOLATION_MSG_HEADER = 8,       /* version, reply bit, or no such request */
	SL_RTR_VIOLATION_MSG_REFUSED = 9,      /* a request that is not served on purpose */
	SL_RTR_VIOLATION_MSG_SIZE = 10,
	SL_RTR_VIOLATION_MSG_FDS = 11,         /* wrong number of descriptors, or of the wrong kind */
	SL_RTR_VIOLATION_MSG_STATE = 12,       /* not legal now, or its feature was not negotiated */
	SL_RTR_VIOLATION_MSG_VALUE = 13,       /* a field out of its range */
	SL_RTR_VIOLATION_MSG_MEMORY = 14,      /* regions that overlap, exceed their file, or can not be mapped */
	SL_RTR_VIOLATION_MEMORY_LOST = 15,     /* taken away while it was in use */
	SL_RTR_VIOLATION_STORM_KICKS = 16,     /* far more kicks than frames */
	SL_RTR_VIOLATION_STORM_MESSAGES = 17,
	SL_RTR_VIOLATION_STORM_RESETS = 18,    /* rings started again and again */
	SL_RTR_VIOLATION_STORM_LINKS = 19,     /* links ended by the peer again and again */
	SL_RTR_VIOLATION_NB = 20,
};

/* Of one instance's port. Writer: router. Reader: manager. "in" is from the NIC to the instance. */
struct sl_rtr_port {
	__u64 in_packets;
	__u64 in_bytes;
	__u64 out_packets;
	__u64 out_bytes;
	__u64 in_dropped;    /* for this instance, but its port refused */
	__u64 out_dropped;   /* from this instance, for any reason */
	__u32 violations;    /* of a virtual machine */
	__u16 violation;     /* the last one: enum sl_rtr_violation */
	__u8 link;           /* enum sl_rtr_link, now */
	__u8 pad;
	__u64 pad2;
};
_Static_assert(sizeof(struct sl_rtr_port) == SL_CACHELINE, "a line for each port");

/* The whole memfd. The manager creates it (zeroed, at least this long), passes it as --counters-fd and maps it
 * read-only; a router that is started again with the same memfd goes on counting. The router writes with relaxed
 * stores, once per turn of its loop. */
struct sl_rtr_counters {
	__u32 magic;                               /* SL_RTR_COUNTERS_MAGIC, set last */
	__u16 version;                             /* SL_ABI_VERSION */
	__u16 nb_counter;                          /* SL_RTR_COUNTER_NB of the router */
	__u32 pid;                                 /* of the router */
	__u32 pad;
	__u64 start_ns;                            /* when it started */
	__u64 pad2[5];
	__u64 total[SL_RTR_COUNTER_CAP];           /* by enum sl_rtr_counter */
	struct sl_rtr_port port[SL_VM_MAX];        /* by vm_id */
};
_Static_assert(sizeof(struct sl_rtr_counters) == 64 + 56 * 8 + 1024 * 64, "no hidden padding");

#endif
