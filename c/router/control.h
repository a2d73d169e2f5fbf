/* SPDX-License-Identifier: Apache-2.0 */
/* The control socket: requests of the manager (c/abi/router.h), each answered. The router's loop owns the epoll set. */
#ifndef SL_CONTROL_H
#define SL_CONTROL_H

#include "router/steer.h"

enum { SL_CONTROL_CONNS = 4 };   /* a manager, its successor, a tool */

/* What an event in the epoll set is about: kind in the upper half of data.u64, index in the lower. */
enum sl_event_kind {
	SL_EVENT_SIGNAL = 1,
	SL_EVENT_LISTEN,
	SL_EVENT_CONN,           /* index: connection */
	SL_EVENT_NIC,            /* index: queue */
	SL_EVENT_VM,             /* index: vm_id */
};

struct sl_control {
	struct sl_router *router;
	int listen_fd;
	int conn[SL_CONTROL_CONNS];      /* -1: free */
};

/* Watches fd for EPOLLIN. 0 or -errno. */
int sl_event_add(int epoll_fd, int fd, enum sl_event_kind kind, uint32_t index);

/* Listens at path, only for the calling user; a stale socket there is replaced. 0 or -errno. */
int sl_control_open(struct sl_control *c, struct sl_router *router, const char *path);
/* Takes a waiting connection; one too many is closed at once. */
void sl_control_accept(struct sl_control *c);
/* Handles the requests that wait on a connection. */
void sl_control_read(struct sl_control *c, uint32_t conn);

/* Closes the port of vm_id and forgets it. */
void sl_control_port_del(struct sl_router *r, uint16_t vm_id);

#endif
