/* SPDX-License-Identifier: Apache-2.0 */
/* The tcp layer's parts: tcp.c accepts and does the rest of the layer's life, conn.c is one connection. */
#ifndef SL_TCP_H
#define SL_TCP_H

#include "edge/edge.h"
#include "layers/layers.h"
#include "layers/tcp/net.h"

struct sl_tcp_listener {
	struct sl_watch watch;
	unsigned service;
};

struct sl_tcp {
	struct sl_tcp_conf conf;
	struct sl_tcp_listener listeners[SL_LISTENERS_MAX];
	unsigned nb_listeners;
	unsigned nb_accepted;        /* since the last traced one */
	struct sl_list conns;
};

static inline struct sl_tcp *sl_tcp_of(struct sl_instance *inst)
{
	return inst->layer_state;
}

/* conn.c */
extern const struct sl_flow_ops sl_tcp_back;
struct sockaddr_in6;
/* An accepted socket, which it owns from now on. */
void sl_tcp_conn_new(struct sl_instance *inst, unsigned service, int fd, const struct sockaddr_in6 *from);
void sl_tcp_conns_abort(struct sl_tcp *t);

#endif
