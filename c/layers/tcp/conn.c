/* SPDX-License-Identifier: Apache-2.0 */
/* A connection is a socket and a flow. Bytes that came are received straight into a slot of the arena; bytes that go
 * are sent straight from the next layer's slot. No room on the edge stops the reading, and so closes TCP's window; no
 * room in the socket leaves the bytes with the flow library, and so closes the flow's window. */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "layers/tcp/tcp.h"

enum {
	READ_LEN = 16384,
	RETRY_MS = SL_WHEEL_MS,      /* no slot for the OPEN: try again */
	ORPHAN_MS = 2000,            /* a connection whose tls instance is lost looks for another one so long */
	LINGER_MS = 2000,            /* a client that has got all, our FIN too, may keep silent so long without closing */
};

struct conn {
	struct sl_list node;         /* in sl_tcp.conns */
	struct sl_watch watch;
	struct sl_instance *inst;
	struct sl_flow *flow;        /* NULL: waits for room to open it, or lingers */
	struct sl_timer timer;       /* idle, or the retry of the open */
	struct sl_flow_open open;
	uint64_t active_ms;          /* last byte in either direction */
	uint32_t read_len;           /* what the last read brought: decides the size of the next slot */
	struct sl_answer answer;     /* the first one */
	bool answered;
	bool said_all;               /* our FIN went */
	bool lingers;                /* both FINs went, but the client has not got all yet */
	bool orphan;                 /* the flow has no peer */
	uint64_t orphan_until_ms;
	uint8_t *state;              /* what tls gave to be kept, sealed: state_len bytes */
	uint32_t state_len;
};

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
	free(c->state);
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

/* --- a client that is slower than we are --- */

static struct tcp_info info_of(const struct conn *c)
{
	struct tcp_info info = {0};
	socklen_t len = sizeof(info);

	getsockopt(c->watch.fd, IPPROTO_TCP, TCP_INFO, &info, &len);
	return info;
}

/* All is said. The kernel still has what the client has not taken, and would lose it with this instance: so it counts as a
 * connection until our FIN is acknowledged. The kernel tells of that as of each change of a socket's state, and EPOLLET of
 * nothing else: to poll it is always writable, as it was shut down. */
static void conn_linger(struct conn *c)
{
	c->flow = NULL;
	c->lingers = true;
	sl_answer_drop(&c->answer);
	sl_watch_mod(c->inst, &c->watch, EPOLLOUT | EPOLLET);
}

static void linger_ready(struct conn *c)
{
	uint8_t state = info_of(c).tcpi_state;

	if (state != TCP_FIN_WAIT1 && state != TCP_CLOSING && state != TCP_LAST_ACK)
		conn_free(c, false);
}

void sl_tcp_conns_abort(struct sl_tcp *t)
{
	while (!sl_list_empty(&t->conns))
		conn_abort(sl_container_of(t->conns.next, struct conn, node), SL_ERROR_PEER_GONE);
}

/* --- client to edge --- */

/* Nothing more is read from the client. */
static void client_end(struct conn *c)
{
	sl_watch_mod(c->inst, &c->watch, c->watch.events & ~(uint32_t)(EPOLLIN | EPOLLRDHUP));
	sl_flow_fin(c->flow);
}

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
	if (!n)
		client_end(c);
	else if (errno != EAGAIN && errno != EINTR)
		conn_abort(c, SL_ERROR_CLIENT);
}

static void conn_ready(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	struct conn *c = sl_container_of(w, struct conn, watch);

	(void)inst;
	if (c->lingers) {
		linger_ready(c);
		return;
	}
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
	c->said_all = true;
	if (!f->tx_fin)
		sl_timer_arm(&c->inst->wheel, &c->timer, LINGER_MS);
}

static void flow_over(struct sl_flow *f, enum sl_request_status status)
{
	struct conn *c = f->user;

	sl_trace_flow(f, SL_TRACE_DONE, 0);
	if (status == SL_COMPLETED)
		conn_linger(c);
	else
		conn_free(c, true);
}

/* --- a tls instance that dies or drains: another one goes on (layers/tls/move.h) --- */

static void flow_state(struct sl_flow *f, const void *msg, uint32_t len)
{
	struct conn *c = f->user;

	if (c->state_len != len) {
		free(c->state);
		c->state = malloc(len);
		c->state_len = c->state ? len : 0;
	}
	if (c->state)
		memcpy(c->state, msg, len);
}

/* Returns false if the connection is over. */
static bool conn_reopen(struct conn *c)
{
	if (!sl_flow_reopen(c->flow, c->state, c->state_len)) {
		c->orphan = false;
		return true;
	}
	if (c->inst->wheel.now_ms >= c->orphan_until_ms) {
		conn_abort(c, SL_ERROR_PEER_GONE);
		return false;
	}
	sl_timer_arm(&c->inst->wheel, &c->timer, RETRY_MS);
	return true;
}

static bool flow_orphaned(struct sl_flow *f)
{
	struct conn *c = f->user;

	if (!c->state_len)
		return false;
	c->orphan = true;
	c->orphan_until_ms = c->inst->wheel.now_ms + ORPHAN_MS;
	conn_reopen(c);
	return true;
}

static void flow_drain(struct sl_flow *f)
{
	const struct conn *c = f->user;

	if (c->state_len)
		sl_flow_hand_over(f);
}

/* --- beginning --- */

static void addr_get(const struct sockaddr_in6 *a, __u8 addr[16], __be16 *port)
{
	memcpy(addr, &a->sin6_addr, 16);
	*port = a->sin6_port;
}

static bool traced(struct sl_tcp *t, struct sl_instance *inst)
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
	bool trace = traced(sl_tcp_of(c->inst), c->inst);
	int err = next ? sl_flow_open(next, 0, &c->open, sizeof(c->open), trace ? SL_F_TRACE : 0, c, &c->flow) : -ENETUNREACH;

	if (err == -EAGAIN) {
		sl_timer_arm(&c->inst->wheel, &c->timer, RETRY_MS);
		return true;
	}
	if (err) {
		conn_free(c, true);
		return false;
	}
	if (next->peer_layer == SL_LAYER_TLS)
		sl_flow_keep(c->flow, 0);
	sl_trace_flow(c->flow, SL_TRACE_ACCEPT, 0);
	sl_watch_mod(c->inst, &c->watch, EPOLLIN | EPOLLRDHUP);
	if (sl_tcp_of(c->inst)->conf.idle_timeout_ms)
		sl_timer_arm(&c->inst->wheel, &c->timer, sl_tcp_of(c->inst)->conf.idle_timeout_ms);
	return true;
}

/* We have said all, the client has not: it may go on as long as it takes our bytes, and speak (RFC 9112 section 9.6). Only
 * one that has everything and is silent has left without a word, for all that the layers behind us know. */
static bool client_left(const struct conn *c)
{
	struct tcp_info info = info_of(c);

	return info.tcpi_state == TCP_FIN_WAIT2 && info.tcpi_last_ack_recv >= LINGER_MS;
}

static void conn_timer(struct sl_timer *timer)
{
	struct conn *c = sl_container_of(timer, struct conn, timer);
	uint64_t limit = sl_tcp_of(c->inst)->conf.idle_timeout_ms, idle;
	bool waits = c->flow && c->said_all && !c->flow->tx_fin;

	if (c->orphan && !conn_reopen(c))
		return;
	idle = c->lingers ? info_of(c).tcpi_last_data_sent : c->inst->wheel.now_ms - c->active_ms;
	if (!c->flow && !c->lingers)
		conn_open(c);
	else if (c->orphan)
		return;
	else if (limit && idle >= limit)
		conn_abort(c, SL_ERROR_TIMEOUT);
	else if (waits && client_left(c))
		client_end(c);
	else if (waits)
		sl_timer_arm(&c->inst->wheel, timer, LINGER_MS);
	else if (limit)
		sl_timer_arm(&c->inst->wheel, timer, limit - idle);
}

void sl_tcp_conn_new(struct sl_instance *inst, unsigned service, int fd, const struct sockaddr_in6 *from)
{
	struct conn *c = calloc(1, sizeof(*c));
	struct sockaddr_in6 local;
	socklen_t len = sizeof(local);
	int one = 1, user_timeout = (int)sl_tcp_of(inst)->conf.user_timeout_ms;

	if (!c || inst->active_flows >= sl_tcp_of(inst)->conf.max_connections || getsockname(fd, (void *)&local, &len)) {
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
	sl_list_append(&sl_tcp_of(inst)->conns, &c->node);
	inst->active_flows++;
	inst->requests++;
	conn_open(c);
}

const struct sl_flow_ops sl_tcp_back = {
	.data = flow_data, .fin = flow_fin, .writable = flow_writable, .over = flow_over, .drain = flow_drain,
	.orphaned = flow_orphaned, .state = flow_state,
};
