/* SPDX-License-Identifier: Apache-2.0 */
/* The tcp layer: kernel TCP on one side, the edge on the other, one copy between them.
 *
 * A connection is a socket and a flow. Bytes that came are received straight into a slot of the arena; bytes that go
 * are sent straight from the next layer's slot. No room on the edge stops the reading, and so closes TCP's window; no
 * room in the socket leaves the bytes with the flow library, and so closes the flow's window. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <seccomp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "layers/layers.h"
#include "layers/tcp/net.h"

enum {
	ACCEPT_BURST = 64,           /* connections taken in one turn: the others must live too */
	READ_LEN = 16384,
	RETRY_MS = SL_WHEEL_MS,      /* no slot for the OPEN: try again */
};

struct listener {
	struct sl_watch watch;
	unsigned service;
};

struct tcp {
	struct sl_tcp_conf conf;
	struct listener listeners[SL_LISTENERS_MAX];
	unsigned nb_listeners;
	unsigned nb_accepted;        /* since the last traced one */
	struct sl_list conns;
};

struct conn {
	struct sl_list node;         /* in tcp.conns */
	struct sl_watch watch;
	struct sl_instance *inst;
	struct sl_flow *flow;        /* NULL: waits for room to open it */
	struct sl_timer timer;       /* idle, or the retry of the open */
	struct sl_flow_open open;
	uint64_t active_ms;          /* last byte in either direction */
	uint32_t read_len;           /* what the last read brought: decides the size of the next slot */
	struct sl_answer answer;     /* the first one */
	bool answered;
};

static struct tcp *tcp_of(struct sl_instance *inst)
{
	return inst->layer_state;
}

/* --- end of a connection --- */

static void conn_free(struct conn *c, bool abort)
{
	struct linger now = {.l_onoff = 1, .l_linger = 0};

	if (abort)   /* the client must see a reset, not an orderly end of what it got */
		setsockopt(c->watch.fd, SOL_SOCKET, SO_LINGER, &now, sizeof(now));
	sl_watch_del(c->inst, &c->watch);
	sl_timer_cancel(&c->timer);
	sl_answer_drop(&c->answer);
	close(c->watch.fd);
	sl_list_unlink(&c->node);
	c->inst->active_flows--;
	free(c);
}

static void conn_abort(struct conn *c, enum sl_request_status why)
{
	if (c->flow) {
		sl_trace_flow(c->flow, SL_TRACE_DONE, 0);
		sl_flow_reset(c->flow, why);
	}
	if (why == SL_ERROR_TIMEOUT)
		c->inst->counters[SL_CNT_TIMEOUT]++;
	conn_free(c, true);
}

/* --- client to edge --- */

static void conn_read(struct conn *c)
{
	uint32_t want = c->read_len > SL_SMALL_LEN / 2 ? READ_LEN : SL_SMALL_LEN;
	struct sl_buf buf;
	uint32_t room = sl_flow_reserve(c->flow, want, &buf);
	ssize_t n;

	if (!room) {
		sl_watch_mod(c->inst, &c->watch, c->watch.events & ~(uint32_t)EPOLLIN);
		return;
	}
	n = recv(c->watch.fd, buf.data, room, MSG_DONTWAIT);
	if (n > 0) {
		c->read_len = (uint32_t)n;
		c->active_ms = c->inst->wheel.now_ms;
		c->inst->bytes_in += (uint64_t)n;
		sl_flow_commit(c->flow, &buf, (uint32_t)n, 0);
		return;
	}
	sl_buf_free(c->flow->edge, &buf);
	if (!n) {
		sl_watch_mod(c->inst, &c->watch, c->watch.events & ~(uint32_t)(EPOLLIN | EPOLLRDHUP));
		sl_flow_fin(c->flow);
	} else if (errno != EAGAIN && errno != EINTR) {
		conn_abort(c, SL_ERROR_CLIENT);
	}
}

static void conn_ready(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	struct conn *c = sl_container_of(w, struct conn, watch);

	(void)inst;
	if (events & EPOLLERR) {
		conn_abort(c, SL_ERROR_CLIENT);
		return;
	}
	if (events & EPOLLOUT) {
		sl_watch_mod(c->inst, w, w->events & ~(uint32_t)EPOLLOUT);
		sl_flow_resume(c->flow);   /* may wait for EPOLLOUT again; ends the connection only at the end of the turn */
	}
	if (events & (EPOLLIN | EPOLLHUP) && w->events & EPOLLIN)
		conn_read(c);
	else if (events & EPOLLHUP && !(c->flow && c->flow->tx_fin && c->flow->rx_fin))   /* both FINs: over() is on its way */
		conn_abort(c, SL_ERROR_CLIENT);
}

static void flow_writable(struct sl_flow *f)
{
	struct conn *c = f->user;

	sl_watch_mod(c->inst, &c->watch, c->watch.events | EPOLLIN);
}

/* --- edge to client --- */

static uint32_t flow_data(struct sl_flow *f, const uint8_t *p, uint32_t len)
{
	struct conn *c = f->user;
	ssize_t n = send(c->watch.fd, p, len, MSG_DONTWAIT | MSG_NOSIGNAL);

	if (sl_unlikely(!c->answered)) {
		c->answered = true;
		sl_answer_done(c->inst, &c->answer);
		sl_trace_flow(f, SL_TRACE_BACK, 0);
	}
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		return len;   /* the socket is broken: EPOLLERR ends the connection; until then the bytes go nowhere */
	n = sl_max(n, (ssize_t)0);
	if (n)
		c->active_ms = c->inst->wheel.now_ms;
	c->inst->bytes_out += (uint64_t)n;
	if ((uint32_t)n < len)
		sl_watch_mod(c->inst, &c->watch, c->watch.events | EPOLLOUT);
	return (uint32_t)n;
}

static void flow_fin(struct sl_flow *f)
{
	struct conn *c = f->user;

	shutdown(c->watch.fd, SHUT_WR);
}

static void flow_over(struct sl_flow *f, enum sl_request_status status)
{
	struct conn *c = f->user;

	sl_trace_flow(f, SL_TRACE_DONE, 0);
	conn_free(c, status != SL_COMPLETED);
}

/* --- accepting --- */

static void addr_get(const struct sockaddr_in6 *a, __u8 addr[16], __be16 *port)
{
	memcpy(addr, &a->sin6_addr, 16);
	*port = a->sin6_port;
}

static bool traced(struct tcp *t, struct sl_instance *inst)
{
	if (!inst->trace_every || ++t->nb_accepted < inst->trace_every)
		return false;
	t->nb_accepted = 0;
	return true;
}

/* Returns false if the connection is over. */
static bool conn_open(struct conn *c)
{
	struct sl_edge *next = sl_instance_next_edge(c->inst, c->open.service);
	bool trace = traced(tcp_of(c->inst), c->inst);
	int err = next ? sl_flow_open(next, 0, &c->open, sizeof(c->open), trace ? SL_F_TRACE : 0, c, &c->flow) : -ENETUNREACH;

	if (err == -EAGAIN) {
		sl_timer_arm(&c->inst->wheel, &c->timer, RETRY_MS);
		return true;
	}
	if (err) {
		conn_free(c, true);
		return false;
	}
	sl_trace_flow(c->flow, SL_TRACE_ACCEPT, 0);
	sl_watch_mod(c->inst, &c->watch, EPOLLIN | EPOLLRDHUP);
	if (tcp_of(c->inst)->conf.idle_timeout_ms)
		sl_timer_arm(&c->inst->wheel, &c->timer, tcp_of(c->inst)->conf.idle_timeout_ms);
	return true;
}

static void conn_timer(struct sl_timer *timer)
{
	struct conn *c = sl_container_of(timer, struct conn, timer);
	uint64_t idle = c->inst->wheel.now_ms - c->active_ms, limit = tcp_of(c->inst)->conf.idle_timeout_ms;

	if (!c->flow)
		conn_open(c);
	else if (idle >= limit)
		conn_abort(c, SL_ERROR_TIMEOUT);
	else
		sl_timer_arm(&c->inst->wheel, timer, limit - idle);
}

static void conn_new(struct sl_instance *inst, unsigned service, int fd, const struct sockaddr_in6 *from)
{
	struct conn *c = calloc(1, sizeof(*c));
	struct sockaddr_in6 local;
	socklen_t len = sizeof(local);
	int one = 1, user_timeout = (int)tcp_of(inst)->conf.user_timeout_ms;

	if (!c || inst->active_flows >= tcp_of(inst)->conf.max_connections || getsockname(fd, (void *)&local, &len)) {
		inst->counters[SL_CNT_REFUSED]++;
		free(c);
		close(fd);
		return;
	}
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one));
	if (user_timeout)
		setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout, sizeof(user_timeout));
	c->inst = inst;
	c->watch = (struct sl_watch){fd, 0, conn_ready};
	c->active_ms = inst->wheel.now_ms;
	sl_timer_init(&c->timer, conn_timer);
	addr_get(from, c->open.client_addr, &c->open.client_port);
	addr_get(&local, c->open.local_addr, &c->open.local_port);
	c->open.service = (__u16)service;
	c->open.accepted_ns = sl_now_ns();
	if (sl_watch_add(inst, &c->watch)) {
		free(c);
		close(fd);
		return;
	}
	sl_answer_begin(inst, &c->answer);
	sl_list_append(&tcp_of(inst)->conns, &c->node);
	inst->active_flows++;
	inst->requests++;
	conn_open(c);
}

static void listener_ready(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	const struct listener *l = sl_container_of(w, struct listener, watch);

	(void)events;
	for (int i = 0; i < ACCEPT_BURST; i++) {
		struct sockaddr_in6 from;
		socklen_t len = sizeof(from);
		int fd = accept4(w->fd, (void *)&from, &len, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (fd < 0)
			return;   /* EAGAIN: no more; EMFILE and the like: the client stays in the backlog */
		conn_new(inst, l->service, fd, &from);
	}
}

/* --- life --- */

static int tcp_init(struct sl_instance *inst)
{
	uint32_t len;
	const struct sl_tcp_conf *conf = sl_instance_conf(inst, SL_CONF_TCP, 0, &len);
	struct tcp *t;
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
			t->listeners[t->nb_listeners++] = (struct listener){.watch = {fd, EPOLLIN, listener_ready}, .service = i};
	return t->nb_listeners ? 0 : sl_instance_fail(inst, EINVAL, "tcp: no listening socket was granted");
}

static int tcp_start(struct sl_instance *inst)
{
	struct tcp *t = tcp_of(inst);

	for (unsigned i = 0; i < t->nb_listeners; i++) {
		int err = sl_watch_add(inst, &t->listeners[i].watch);

		if (err)
			return sl_instance_fail(inst, -err, "tcp: epoll: %s", strerror(-err));
	}
	return 0;
}

static void tcp_stop(struct sl_instance *inst)
{
	struct tcp *t = tcp_of(inst);

	if (!t)
		return;
	for (unsigned i = 0; i < t->nb_listeners; i++) {
		sl_watch_del(inst, &t->listeners[i].watch);
		close(t->listeners[i].watch.fd);
	}
	while (!sl_list_empty(&t->conns))
		conn_abort(sl_container_of(t->conns.next, struct conn, node), SL_ERROR_PEER_GONE);
	free(t);
	inst->layer_state = NULL;
}

static const int tcp_syscalls[] = {
	SCMP_SYS(accept4), SCMP_SYS(recvfrom), SCMP_SYS(sendto), SCMP_SYS(shutdown), SCMP_SYS(setsockopt), SCMP_SYS(getsockname), -1,
};

static const struct sl_flow_ops tcp_back = {
	.data = flow_data, .fin = flow_fin, .writable = flow_writable, .over = flow_over,
};

/* Draining needs nothing here: the classifier sends no new SYN, and what is still in the backlog is accepted and
 * served. */
const struct sl_layer sl_layer_tcp = {
	.name = "tcp", .id = SL_LAYER_TCP, .back = &tcp_back, .init = tcp_init, .start = tcp_start,
	.stop = tcp_stop, .syscalls = tcp_syscalls,
};
