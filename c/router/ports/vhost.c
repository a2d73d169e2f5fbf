/* SPDX-License-Identifier: Apache-2.0 */
#include "router/ports/vhost.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	/* Times that the rings are found empty before the guest is asked for kicks: a kick costs it a system call or a
	 * VM exit, looking once more costs us less. */
	EMPTY_POLLS = 4,
};

struct sl_port_vhost {
	struct sl_port port;
	struct sl_vhost_link *link;
	struct sl_tap_bufs *bufs;
	uint32_t turn;            /* pair to be served next */
	uint32_t nb_empty;        /* polls without a frame since the last one */
	uint64_t seen[SL_RTR_VIOLATION_NB];   /* violations that were told already */
	bool armed;
};

static struct sl_port_vhost *vhost_of(struct sl_port *port)
{
	return sl_container_of(port, struct sl_port_vhost, port);
}

struct sl_vhost *sl_port_vhost_device(struct sl_port *port)
{
	return &vhost_of(port)->link->dev;
}

#define SAME(upper, lower) \
	_Static_assert((int)SL_RTR_VIOLATION_##upper == SL_VHOST_##upper - SL_VHOST_VIOLATION_FIRST + 1, #lower);
SL_VHOST_VIOLATIONS(SAME)
#undef SAME
_Static_assert(SL_VHOST_VIOLATION_FIRST + SL_RTR_VIOLATION_NB == SL_VHOST_COUNT_NB + 1, "the violations are the last counters");
_Static_assert((int)SL_RTR_LINK_WAITING == SL_VHOST_WAITING + 1 && (int)SL_RTR_LINK_IS_UP == SL_VHOST_UP + 1 &&
	       (int)SL_RTR_LINK_QUARANTINE == SL_VHOST_QUARANTINE + 1, "the same states");

/* After each use: what became of the link, and why. */
static void state_tell(struct sl_port_vhost *v)
{
	const uint64_t *count = v->link->dev.count + SL_VHOST_VIOLATION_FIRST - 1;
	uint16_t i;

	sl_vhost_link_check(v->link);
	v->port.link = (uint8_t)(v->link->state + 1);
	for (i = 1; i < SL_RTR_VIOLATION_NB; i++) {
		if (count[i] == v->seen[i])
			continue;
		v->port.nb_violation += (uint32_t)(count[i] - v->seen[i]);
		v->port.violation = i;
		v->seen[i] = count[i];
	}
}

/* Sleeps (the guest kicks) or stays awake, by whether there was something to do. */
static void sleep_or_not(struct sl_port_vhost *v, bool busy)
{
	v->nb_empty = busy ? 0 : v->nb_empty + 1;
	if (!busy && v->nb_empty > EMPTY_POLLS) {
		if (!sl_vhost_arm(&v->link->dev)) {
			v->nb_empty = EMPTY_POLLS;   /* the next wake-up for nothing goes to sleep at once */
			v->armed = true;
			sl_vhost_link_wake(v->link, false);
			return;
		}
		v->nb_empty = 0;
	}
	sl_vhost_link_wake(v->link, true);
	if (v->armed)
		sl_vhost_disarm(&v->link->dev);
	v->armed = false;
}

static uint32_t vhost_rx_burst(struct sl_port *port, struct sl_frame *frames, uint32_t nb)
{
	struct sl_port_vhost *v = vhost_of(port);
	struct sl_vq_buf bufs[SL_BURST];
	uint32_t i, n;
	bool more;

	port->error = 0;
	sl_vhost_link_poll(v->link);
	nb = sl_min(nb, (uint32_t)SL_BURST);
	for (i = 0; i < nb; i++)
		bufs[i].data = v->bufs->data[i] + SL_VLAN_MAX;
	n = sl_vhost_recv(&v->link->dev, bufs, nb, &v->turn, &more);
	for (i = 0; i < n; i++)
		frames[i] = (struct sl_frame){ .seg = {{ bufs[i].data, bufs[i].len }}, .nb_seg = 1, .len = bufs[i].len };
	sleep_or_not(v, n || more);
	state_tell(v);
	port->oversize = v->link->dev.count[SL_VHOST_FROM_DROP_OVERSIZE];
	return n;
}

/* Spreads flows over the guest's queues: addresses and ports of IPv4 or IPv6, mixed. */
static uint32_t flow_hash(const struct sl_frame *f)
{
	const uint8_t *p = f->seg[0].iov_base;
	size_t from = SL_ETH_LEN + 12, len = 12, i;   /* IPv4: addresses, ports of a header without options */
	uint32_t h = 0, word;

	if (f->seg[0].iov_len >= SL_ETH_LEN + 44 && p[12] == 0x86) {
		from = SL_ETH_LEN + 8;
		len = 36;
	}
	if (f->seg[0].iov_len < from + len)
		return 0;
	for (i = 0; i < len; i += 4) {
		memcpy(&word, p + from + i, 4);
		h = (h ^ word) * 0x9e3779b1u;
	}
	return h >> 16;
}

static uint32_t vhost_tx_burst(struct sl_port *port, const struct sl_frame *frames, uint32_t nb)
{
	struct sl_vhost *d = sl_port_vhost_device(port);
	uint32_t i, hash = 0;

	port->error = 0;
	for (i = 0; i < nb; i++) {
		if (d->nb_up > 1)
			hash = flow_hash(&frames[i]);
		port->error = sl_vhost_send(d, hash, frames[i].seg, frames[i].nb_seg, frames[i].len);
		if (port->error)
			break;
	}
	sl_vhost_flush(d);
	state_tell(vhost_of(port));
	if (port->nb_violation)   /* is looked at after rx_burst */
		sl_vhost_link_wake(vhost_of(port)->link, true);
	return i;
}

static void vhost_close(struct sl_port *port)
{
	struct sl_port_vhost *v = vhost_of(port);

	sl_vhost_link_close(v->link);
	free(v);
}

static const struct sl_port_ops ops = { vhost_rx_burst, vhost_tx_burst, vhost_close };

int sl_port_vhost_folder_enter(const char *run_dir)
{
	char path[4096];

	if (snprintf(path, sizeof(path), "%s/vhost", run_dir) >= (int)sizeof(path))
		return -ENAMETOOLONG;
	if (mkdir(path, 0711) && errno != EEXIST)
		return -errno;
	return chmod(path, 0711) || chdir(path) ? -errno : 0;
}

bool sl_port_vhost_connects(struct sl_port *port)
{
	return port && port->ops == &ops && !vhost_of(port)->link->server;
}

int sl_port_vhost_open(const struct sl_port_vhost_conf *conf, struct sl_port **ret)
{
	struct sl_vhost_link_conf link = {
		.path = conf->path, .server = conf->server, .listen_fd = conf->listen_fd, .nb_pair = conf->nb_pair,
		.unsealed_ok = conf->unsealed_ok, .frame_max = SL_FRAME_MAX, .bell = conf->bell,
	};
	struct sl_port_vhost *v = calloc(1, sizeof(*v));
	int err;

	if (!v)
		return -ENOMEM;
	err = sl_vhost_link_open(&link, &v->link);
	if (err) {
		free(v);
		return err;
	}
	v->port = (struct sl_port){ .ops = &ops, .fd = v->link->epoll_fd, .vm_id = conf->vm_id };
	v->bufs = conf->bufs;
	*ret = &v->port;
	return 0;
}
