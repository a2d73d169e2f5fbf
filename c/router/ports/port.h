/* SPDX-License-Identifier: Apache-2.0 */
/* A port: where frames come from and go to, as one struct of functions. One file here per kind: xsk and dpdk (the NIC),
 * tap (process instances), vhost (virtual machines), null (tests). Ports belong to the router's one thread; no function
 * blocks, none allocates or logs after open. */
#ifndef SL_PORT_H
#define SL_PORT_H

#include <sys/uio.h>

#include "abi/classifier.h"
#include "abi/router.h"
#include "base/base.h"

enum {
	SL_BURST = 32,            /* frames in one batch; copy-mode AF_XDP sends no more in one system call */
	SL_ETH_LEN = 14,
	SL_VLAN_MAX = 8,          /* bytes of two VLAN tags */
	SL_FRAME_MAX = SL_RTR_MTU_MAX + SL_ETH_LEN + SL_VLAN_MAX,
	SL_FRAME_SEGS = 4,        /* parts of a frame: enough for SL_FRAME_MAX in chunks of a page */
};

/* One item of a batch: where the bytes are, in order. The memory is the port's that returned it from rx_burst, or the
 * caller's for tx_burst. */
struct sl_frame {
	struct iovec seg[SL_FRAME_SEGS];
	uint32_t nb_seg;
	uint32_t len;             /* sum of all seg */
	struct sl_meta meta;      /* the classifier's verdict; kind is 0 when there was none or the port has none */
};

struct sl_port;

/* Counted by whoever drives the NIC. */
struct sl_nic_stats {
	uint64_t dropped;         /* frame too long, or broken */
	uint64_t ring_full;       /* the router was too slow to take it */
	uint64_t fill_empty;      /* no buffer to receive into */
};

struct sl_port_ops {
	/* Returns how many frames it put into frames[], at most nb (and SL_BURST); 0: nothing there, or port->error
	 * says why. Their bytes may be changed in place and live until the next rx_burst of this port (tap: of any tap
	 * that shares the buffers). */
	uint32_t (*rx_burst)(struct sl_port *port, struct sl_frame *frames, uint32_t nb);
	/* Returns how many frames, from the first on, it took; the bytes are copied, the caller may reuse them. When it
	 * returns less than nb, port->error says why frame number [returned] was refused: -EAGAIN full, anything else:
	 * this frame can not be sent. With nb = 0 it only pushes on what an earlier call could not finish
	 * (port->unsent). */
	uint32_t (*tx_burst)(struct sl_port *port, const struct sl_frame *frames, uint32_t nb);
	/* Releases everything, port too; NULL is fine through sl_port_close. */
	void (*close)(struct sl_port *port);
	/* What was lost in front of the port since it was opened; called about once a second while there is traffic.
	 * Only ports on a NIC have it. */
	void (*stats)(struct sl_port *port, struct sl_nic_stats *ret);
};

struct sl_port {
	const struct sl_port_ops *ops;
	int fd;                   /* to wait on for EPOLLIN; -1: none */
	int error;                /* why the last burst stopped: 0 or -errno; -ENXIO: the NIC is gone for good */
	uint16_t vm_id;           /* instance behind it; 0: the NIC */
	bool unsent;              /* taken frames wait in the port: call tx_burst(port, NULL, 0) again within a ms */
	uint64_t oversize;        /* frames dropped: more than SL_FRAME_SEGS parts or SL_FRAME_MAX bytes */
	/* of a guest; whoever looks at them sets nb_violation to 0 again */
	uint32_t nb_violation;
	uint16_t violation;       /* the last one: enum sl_rtr_violation */
	uint8_t link;             /* enum sl_rtr_link */
};

static inline void sl_port_close(struct sl_port *port)
{
	if (port)
		port->ops->close(port);
}

/* What sl_port_xsk_open takes. */
struct sl_xsk_conf {
	const char *ifname;
	uint32_t queue;
	uint32_t mtu;
	int xskmap_fd;            /* the classifier's XSKMAP: the socket is put at index queue. Not kept */
};

enum { SL_XSK_SINGLE_MTU = 4096 - 256 - SL_ETH_LEN - SL_VLAN_MAX };   /* largest that needs no multi-buffer support */

/* An AF_XDP socket in copy mode on one queue of a NIC, with memory of its own (huge pages if there are any). Needs
 * CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK (or rlimit memlock); afterwards none. Waits about 1 s for a former owner's
 * socket to go away.
 * Returns 0; -EBUSY: another program has the queue; -EINVAL: no such queue; -ENODEV: no such interface; -EOPNOTSUPP:
 * mtu above SL_XSK_SINGLE_MTU and the kernel has no AF_XDP multi-buffer (Linux 6.6); -EMSGSIZE: mtu above
 * SL_RTR_MTU_MAX; others from the kernel. */
int sl_port_xsk_open(const struct sl_xsk_conf *conf, struct sl_port **ret);

/* Receive memory that all taps of a router share: a tap's frames are dead once another tap receives. Each buffer has
 * SL_VLAN_MAX bytes of room before the frame, so that tags can be put in without moving it. */
struct sl_tap_bufs {
	uint8_t data[SL_BURST][SL_VLAN_MAX + SL_FRAME_MAX];
};

/* A port on a tap: fd is one queue of it, made with IFF_NO_PI (can not be checked) and without vnet header (else
 * -EINVAL, and fd stays the caller's). On success the port owns fd and has made it non-blocking. -ENOMEM. */
int sl_port_tap_open(int fd, uint16_t vm_id, struct sl_tap_bufs *bufs, struct sl_port **ret);

/* A port for tests: frames put into it are received once, frames sent to it are kept. Inspect it through its own
 * struct. */
enum { SL_NULL_CAP = 64 };
struct sl_port_null {
	struct sl_port port;
	uint32_t nb_rx, nb_tx;
	uint32_t tx_cap;          /* takes no more than this many frames, then -EAGAIN; SL_NULL_CAP at first */
	struct sl_meta rx_meta[SL_NULL_CAP];
	uint32_t rx_len[SL_NULL_CAP], tx_len[SL_NULL_CAP];
	uint8_t rx[SL_NULL_CAP][SL_VLAN_MAX + SL_FRAME_MAX];   /* frames start at SL_VLAN_MAX */
	uint8_t tx[SL_NULL_CAP][SL_FRAME_MAX];
};
int sl_port_null_open(struct sl_port **ret);
/* Puts a frame into the receive side; returns 0, -ENOSPC, or -EMSGSIZE. */
int sl_port_null_put(struct sl_port *port, const void *frame, uint32_t len, const struct sl_meta *meta);

#endif
