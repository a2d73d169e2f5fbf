/* SPDX-License-Identifier: Apache-2.0 */
/* A port on a virtual machine's virtio-net device, by vhost-user (c/vhost). It exists as long as the router wants,
 * whether the VM is there or not: without link, frames to it are refused with -ENETDOWN. */
#ifndef SL_PORT_VHOST_H
#define SL_PORT_VHOST_H

#include "router/ports/port.h"
#include "vhost/link.h"

struct sl_port_vhost_conf {
	const char *path;         /* of the socket; copied */
	bool server;              /* the port listens; else it connects, again and again: QEMU's chardev is the server */
	int listen_fd;            /* server: a listening socket in place of path; the port's on success. -1: none */
	uint16_t vm_id;
	uint16_t nb_pair;         /* queue pairs offered to the guest, 1 ... SL_VHOST_PAIRS_MAX */
	bool unsealed_ok;         /* for tests: peers whose memory file can be cut short */
	struct sl_tap_bufs *bufs; /* receive memory, shared with the other ports of instances */
	struct sl_bell *bell;     /* shared with all vhost-user ports */
};

/* port->fd becomes readable for kicks, messages, connections and timers: rx_burst handles all of them. rx_burst never
 * sets port->error; with nb = 0 it leaves the rings alone. Errors as of sl_vhost_link_open. */
int sl_port_vhost_open(const struct sl_port_vhost_conf *conf, struct sl_port **ret);

/* Makes RUN_DIR/vhost, where relative paths of clients then begin, and enters it: later the way there is closed to this
 * process's user. 0 or -errno. */
int sl_port_vhost_folder_enter(const char *run_dir);

/* Whether this is a vhost-user port that is a client. port may be NULL. */
bool sl_port_vhost_connects(struct sl_port *port);

/* The device behind the port, for its counters (sl_vhost_count_name) and for frames from guest to guest. */
struct sl_vhost *sl_port_vhost_device(struct sl_port *port);

#endif
