/* SPDX-License-Identifier: Apache-2.0 */
/* The tcp layer: kernel TCP on one side, the edge on the other, one copy between them. */
#include <netinet/in.h>
#include <seccomp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "layers/tcp/tcp.h"

enum {
	ACCEPT_BURST = 64,           /* connections taken in one turn: the others must live too */
};

static void listener_ready(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	const struct sl_tcp_listener *l = sl_container_of(w, struct sl_tcp_listener, watch);

	(void)events;
	for (int i = 0; i < ACCEPT_BURST; i++) {
		struct sockaddr_in6 from;
		socklen_t len = sizeof(from);
		int fd = accept4(w->fd, (void *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0)
			return;   /* EAGAIN: no more; EMFILE and the like: the client stays in the backlog */
		sl_tcp_conn_new(inst, l->service, fd, &from);
	}
}

/* --- life --- */

static int tcp_init(struct sl_instance *inst)
{
	uint32_t len;
	const struct sl_tcp_conf *conf = sl_instance_conf(inst, SL_CONF_TCP, 0, &len);
	struct sl_tcp *t;
	int fd;

	if (!conf || len != sizeof(*conf))
		return sl_instance_fail(inst, EINVAL, "tcp: no configuration");
	t = calloc(1, sizeof(*t));
	if (!t)
		return sl_instance_fail(inst, ENOMEM, "tcp: out of memory");
	t->conf = *conf;
	sl_list_init(&t->conns);
	inst->layer_state = t;
	for (unsigned i = 0; i < SL_SERVICE_MAX; i++)
		while (t->nb_listeners < SL_LISTENERS_MAX && (fd = sl_instance_grant(inst, SL_GRANT_LISTENER, i)) >= 0)
			t->listeners[t->nb_listeners++] = (struct sl_tcp_listener){.watch = {fd, EPOLLIN, listener_ready}, .service = i};
	return t->nb_listeners ? 0 : sl_instance_fail(inst, EINVAL, "tcp: no listening socket was granted");
}

static int tcp_start(struct sl_instance *inst)
{
	struct sl_tcp *t = sl_tcp_of(inst);

	for (unsigned i = 0; i < t->nb_listeners; i++) {
		int err = sl_watch_add(inst, &t->listeners[i].watch);

		if (err)
			return sl_instance_fail(inst, -err, "tcp: epoll: %s", strerror(-err));
	}
	return 0;
}

static void tcp_stop(struct sl_instance *inst)
{
	struct sl_tcp *t = sl_tcp_of(inst);

	if (!t)
		return;
	for (unsigned i = 0; i < t->nb_listeners; i++) {
		sl_watch_del(inst, &t->listeners[i].watch);
		close(t->listeners[i].watch.fd);
	}
	sl_tcp_conns_abort(t);
	free(t);
	inst->layer_state = NULL;
}

static const int tcp_syscalls[] = {
	SCMP_SYS(accept4), SCMP_SYS(recvfrom), SCMP_SYS(sendto), SCMP_SYS(shutdown), SCMP_SYS(setsockopt), SCMP_SYS(getsockopt),
	SCMP_SYS(getsockname), -1,
};

/* Draining needs nothing here: the classifier sends no new SYN, what is still in the backlog is accepted and served, and a
 * connection counts until its client has got all. */
const struct sl_layer sl_layer_tcp = {
	.name = "tcp", .id = SL_LAYER_TCP, .back = &sl_tcp_back, .init = tcp_init, .start = tcp_start,
	.stop = tcp_stop, .syscalls = tcp_syscalls,
};
