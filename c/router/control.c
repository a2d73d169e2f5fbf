/* SPDX-License-Identifier: Apache-2.0 */
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "router/control.h"
#include "router/ports/vhost.h"
#include "router/reset.h"

enum {
	REQUESTS_PER_TURN = 64,   /* of one connection, so that frames are not kept waiting */
	FDS_MAX = 4,              /* received at once: one is right, more are recognised and closed */
};

int sl_event_add(int epoll_fd, int fd, enum sl_event_kind kind, uint32_t index)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u64 = (uint64_t)kind << 32 | index };

	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &ev) ? -errno : 0;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* A later version may give meaning to a field that is unused today: refuse it now, so that nobody relies on its being
 * ignored. */
static bool unused_is_zero(const struct sl_rtr_request *q)
{
	static const struct sl_rtr_request zero;
	struct sl_rtr_request rest = *q;

	rest.version = rest.type = 0;
	rest.seq = 0;
	switch (q->type) {
	case SL_RTR_PORT_ADD:
	case SL_RTR_PORT_ADD_VHOST:
		rest.vm_id = 0;
		rest.vips = 0;
		break;
	case SL_RTR_PORT_DEL:
		rest.vm_id = 0;
		break;
	case SL_RTR_VIP_ADD:
		rest.slot = 0;
		memset(rest.addr, 0, sizeof(rest.addr));
		break;
	case SL_RTR_VIP_DEL:
	case SL_RTR_TABLE_SET:
		rest.slot = 0;
		break;
	case SL_RTR_RESET:
		rest.slot = 0;
		rest.tcp_seq = 0;
		rest.client_port = rest.service_port = 0;
		memset(rest.addr, 0, sizeof(rest.addr));
		break;
	case SL_RTR_NET_ADD:
		rest.prefix_len = 0;
		memset(rest.addr, 0, sizeof(rest.addr));
		memset(rest.gateway, 0, sizeof(rest.gateway));
		break;
	}
	return !memcmp(&rest, &zero, sizeof(rest));
}

/* What a port is made of: fd is the caller's unless 0 is returned. */
static int port_open(struct sl_router *r, const struct sl_rtr_request *q, int fd, struct sl_port **ret)
{
	struct sl_port_vhost_conf conf = {
		.server = fd >= 0, .listen_fd = fd, .vm_id = q->vm_id, .nb_pair = SL_VHOST_PAIRS_MAX, .bufs = &r->tap_bufs,
		.bell = &r->bell,
	};
	char path[16];

	if (q->type == SL_RTR_PORT_ADD)
		return sl_port_tap_open(fd, q->vm_id, &r->tap_bufs, ret);
	snprintf(path, sizeof(path), "%u/net", q->vm_id);   /* main has entered the folder */
	conf.path = fd < 0 ? path : NULL;
	return sl_port_vhost_open(&conf, ret);
}

/* Takes *fd (then -1). */
static int port_add(struct sl_router *r, const struct sl_rtr_request *q, int *fd)
{
	struct sl_port *port;
	int err;

	if (!q->vm_id || q->vm_id >= SL_VM_MAX)
		return -EINVAL;
	if (q->type == SL_RTR_PORT_ADD_VHOST && *fd < 0 && sl_port_vhost_connects(r->vm[q->vm_id])) {
		r->vips[q->vm_id] = q->vips;   /* the port that is there is no other: its link stays */
		return 0;
	}
	err = port_open(r, q, *fd, &port);
	if (err)
		return err;
	*fd = -1;
	err = sl_event_add(r->epoll_fd, port->fd, SL_EVENT_VM, q->vm_id);
	if (err) {
		sl_port_close(port);
		return err;
	}
	sl_control_port_del(r, q->vm_id);
	r->vm[q->vm_id] = port;
	r->vips[q->vm_id] = q->vips;
	r->nb_vm++;
	return 0;
}

void sl_control_port_del(struct sl_router *r, uint16_t vm_id)
{
	struct sl_port *port = r->vm[vm_id];

	if (!port)
		return;
	/* the manager holds another descriptor of the same tap: closing ours alone would leave it in the epoll set */
	epoll_ctl(r->epoll_fd, EPOLL_CTL_DEL, port->fd, NULL);
	sl_port_close(port);
	if (r->count.port[vm_id].link)
		sl_count_port(&r->count, vm_id)->link = SL_RTR_LINK_NONE;
	r->vm[vm_id] = NULL;
	r->nb_vm--;
}

static int net_add(struct sl_router *r, const struct sl_rtr_request *q)
{
	struct sl_route route = { .prefix_len = q->prefix_len };

	memcpy(route.prefix.b, q->addr, 16);
	memcpy(route.gateway.b, q->gateway, 16);
	return sl_net_route_set(&r->net, &route);
}

static bool fds_fit(const struct sl_rtr_request *q, uint32_t nb_fd)
{
	if (q->type == SL_RTR_PORT_ADD_VHOST)
		return nb_fd <= 1;
	return nb_fd == (q->type == SL_RTR_PORT_ADD || q->type == SL_RTR_TABLE_SET);
}

/* Carries a request out; takes *fd (then -1) if it keeps it. */
static int request_run(struct sl_router *r, const struct sl_rtr_request *q, uint32_t nb_fd, int *fd)
{
	struct sl_addr addr = sl_addr_from6(q->addr);

	if (q->version != SL_ABI_VERSION || !fds_fit(q, nb_fd) || !unused_is_zero(q))
		return -EINVAL;
	switch (q->type) {
	case SL_RTR_PING:
		return 0;
	case SL_RTR_PORT_ADD:
	case SL_RTR_PORT_ADD_VHOST:
		return port_add(r, q, fd);
	case SL_RTR_PORT_DEL:
		if (!q->vm_id || q->vm_id >= SL_VM_MAX)
			return -EINVAL;
		if (!r->vm[q->vm_id])
			return -ENOENT;
		sl_control_port_del(r, q->vm_id);
		return 0;
	case SL_RTR_VIP_ADD:
		return sl_net_vip_set(&r->net, q->slot, &addr);
	case SL_RTR_VIP_DEL:
		return sl_net_vip_del(&r->net, q->slot);
	case SL_RTR_NET_ADD:
		return net_add(r, q);
	case SL_RTR_NET_CLEAR:
		sl_net_route_clear(&r->net);
		return 0;
	case SL_RTR_TABLE_SET:
		return r->classifier ? sl_classifier_table_set(r->classifier, q->slot, *fd) : -EOPNOTSUPP;
	case SL_RTR_RESET:
		return sl_reset_send(r, q, sl_now_ns());
	default:
		return -EINVAL;
	}
}

static struct sl_rtr_reply reply_make(const struct sl_router *r, const struct sl_rtr_request *q, int status)
{
	struct sl_rtr_reply a = {
		.version = SL_ABI_VERSION, .type = q->type, .seq = q->seq, .status = status, .pid = (__u32)getpid(),
		.start_ns = r->start_ns, .nb_port = r->nb_vm, .nb_vip = (__u16)__builtin_popcountll(r->net.vips),
		.nb_net = (__u16)r->net.nb_route, .mtu = (__u16)r->mtu, .nb_queue = r->nb_nic,
	};

	memcpy(a.mac, r->mac, sizeof(a.mac));
	return a;
}

/* ---- connections ------------------------------------------------------------------------------------------------- */

static void conn_close(struct sl_control *c, uint32_t conn)
{
	close(c->conn[conn]);
	c->conn[conn] = -1;
}

/* Collects the descriptors of a packet into fds. Returns how many there were. */
static uint32_t fds_take(struct msghdr *msg, int fds[FDS_MAX])
{
	struct cmsghdr *cm;
	uint32_t n = 0, i, nb;

	for (cm = CMSG_FIRSTHDR(msg); cm; cm = CMSG_NXTHDR(msg, cm)) {
		if (cm->cmsg_level != SOL_SOCKET || cm->cmsg_type != SCM_RIGHTS)
			continue;
		nb = (uint32_t)((cm->cmsg_len - CMSG_LEN(0)) / sizeof(int));
		for (i = 0; i < nb && n < FDS_MAX; i++, n++)
			memcpy(&fds[n], CMSG_DATA(cm) + i * sizeof(int), sizeof(int));
	}
	return n;
}

/* One request and its reply. False: nothing more to read here. */
static bool request_read(struct sl_control *c, uint32_t conn)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(FDS_MAX * sizeof(int))];
	} cbuf;
	struct sl_rtr_request q = { 0 };
	struct iovec iov = { &q, sizeof(q) };
	struct msghdr msg = {
		.msg_iov = &iov, .msg_iovlen = 1, .msg_control = cbuf.room, .msg_controllen = sizeof(cbuf.room),
	};
	ssize_t len = recvmsg(c->conn[conn], &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	int fds[FDS_MAX] = { -1 }, status = -EINVAL;
	struct sl_rtr_reply a;
	uint32_t nb_fd, i;

	if (len < 0 && (errno == EAGAIN || errno == EINTR))
		return false;
	if (len <= 0) {   /* the peer is gone */
		conn_close(c, conn);
		return false;
	}
	nb_fd = fds_take(&msg, fds);
	if (len == sizeof(q) && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		status = request_run(c->router, &q, nb_fd, &fds[0]);
	for (i = 0; i < nb_fd; i++)
		if (fds[i] >= 0)
			close(fds[i]);
	if (status)
		sl_count_add(&c->router->count, SL_RTR_BAD_REQUEST, 1);
	a = reply_make(c->router, &q, status);
	if (send(c->conn[conn], &a, sizeof(a), MSG_DONTWAIT | MSG_NOSIGNAL) == sizeof(a))
		return true;
	conn_close(c, conn);   /* gone, or it does not read its replies */
	return false;
}

void sl_control_read(struct sl_control *c, uint32_t conn)
{
	uint32_t i;

	for (i = 0; i < REQUESTS_PER_TURN && c->conn[conn] >= 0; i++)
		if (!request_read(c, conn))
			return;
}

void sl_control_accept(struct sl_control *c)
{
	int fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	uint32_t i;

	if (fd < 0)
		return;
	for (i = 0; i < SL_CONTROL_CONNS; i++) {
		if (c->conn[i] >= 0)
			continue;
		if (sl_event_add(c->router->epoll_fd, fd, SL_EVENT_CONN, i))
			break;
		c->conn[i] = fd;
		return;
	}
	close(fd);
}

int sl_control_open(struct sl_control *c, struct sl_router *router, const char *path)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	mode_t mask;
	int err = 0;
	uint32_t i;

	*c = (struct sl_control){ .router = router };
	for (i = 0; i < SL_CONTROL_CONNS; i++)
		c->conn[i] = -1;
	if (snprintf(addr.sun_path, sizeof(addr.sun_path), "%s", path) >= (int)sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	c->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (c->listen_fd < 0)
		return -errno;
	unlink(path);
	mask = umask(0177);
	if (bind(c->listen_fd, (struct sockaddr *)&addr, sizeof(addr)) || listen(c->listen_fd, SL_CONTROL_CONNS))
		err = -errno;
	umask(mask);
	if (!err)
		err = sl_event_add(router->epoll_fd, c->listen_fd, SL_EVENT_LISTEN, 0);
	if (err)
		close(c->listen_fd);
	return err;
}
