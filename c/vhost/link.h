/* SPDX-License-Identifier: Apache-2.0 */
/* The socket of a vhost-user device: connects or listens, reads and answers messages, and begins again when the peer is
 * gone. A peer that violates the protocol is cut off and let in again after a time that doubles with each violation.
 *
 *   from        to          when
 *   WAITING     UP          client: a connect succeeded, tried after SL_VHOST_RETRY_MS and then ever more
 *                           rarely, down to each SL_VHOST_RETRY_MAX_MS; server: a peer connected
 *   UP          WAITING     the peer closed; the device is reset
 *   UP          QUARANTINE  the peer violated the protocol, stormed, or took its memory away; the device is reset
 *   QUARANTINE  WAITING     the penalty is over
 *   never: QUARANTINE -> UP */
#ifndef SL_VHOST_LINK_H
#define SL_VHOST_LINK_H

#include "vhost/device.h"
#include "vhost/storm.h"

enum {
	SL_VHOST_RETRY_MS = 20,
	SL_VHOST_RETRY_MAX_MS = 160,
	SL_VHOST_PENALTY_MIN_MS = 100,
	SL_VHOST_PENALTY_MAX_MS = 10000,
	SL_VHOST_GOOD_MS = 10000,         /* a link that lasted so long is forgiven earlier violations */
};

enum sl_vhost_link_state { SL_VHOST_WAITING, SL_VHOST_UP, SL_VHOST_QUARANTINE };

struct sl_vhost_link_conf {
	/* Of the socket; copied. May be NULL with listen_fd. A client only takes a peer who owns the socket's folder */
	const char *path;
	bool server;                      /* listen there (a stale socket is replaced); else connect */
	int listen_fd;                    /* server: a listening socket in place of path, ours on success; -1: none */
	uint16_t nb_pair;                 /* as in sl_vhost_conf */
	bool unsealed_ok;
	uint32_t frame_max;
	struct sl_bell *bell;             /* as in sl_vhost_conf */
};

struct sl_vhost_link {
	struct sl_vhost dev;
	int epoll_fd;                     /* readable when sl_vhost_link_poll has something to do */
	enum sl_vhost_link_state state;
	/* private */
	char path[108];
	bool server, awake;
	int sock, listen_fd, timer_fd, wake_fd;
	uint64_t up_ns;
	struct sl_vhost_storm storm;
	uint32_t penalty_ms, retry_ms;
	uint32_t have;                    /* bytes of msg that were read */
	struct sl_vu_msg msg;
};

/* 0; -EINVAL: nb_pair or frame_max, or listen_fd is no UNIX stream socket that listens; -ENAMETOOLONG; -ENOSYS: the bell is not open; -ENOMEM; others from the kernel. Client: success even if nobody is
 * there yet. */
int sl_vhost_link_open(const struct sl_vhost_link_conf *conf, struct sl_vhost_link **ret);
void sl_vhost_link_close(struct sl_vhost_link *l);

/* Ends the link if the guest's memory was lost, or if it storms. After each use of the rings. */
void sl_vhost_link_check(struct sl_vhost_link *l);

/* Handles what waits: kicks, messages, connections, timers; bounded. Never blocks. */
void sl_vhost_link_poll(struct sl_vhost_link *l);

/* Keeps epoll_fd readable (on) because work is left that no kick will tell of. */
void sl_vhost_link_wake(struct sl_vhost_link *l, bool on);

#endif
