/* SPDX-License-Identifier: Apache-2.0 */
#include "router/ports/dpdk.h"

#include <linux/bpf.h>
#include <rte_ethdev.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "router/ports/dpdk_start.h"

enum {
	SPIN_NS = 50000,
	SLEEP_MIN_NS = 20000,
	SLEEP_MAX_NS = 1000000,
	IDLE_NS = 1000000000,         /* after which sleeps grow further, */
	SLEEP_IDLE_NS = 4000000,      /* to this */
	SLEEP_ARMED_NS = 100000000,   /* with interrupts: should one get lost */
	AT_ONCE_NS = 1,
};

struct sl_port_dpdk {
	struct sl_port port;
	struct sl_dpdk_device dev;
	struct sl_classifier *classifier;
	int timer_fd;
	bool awake;                   /* the timer has expired and stays so */
	bool armed;                   /* waits for an interrupt */
	uint32_t sleep_ns;
	uint64_t idle_ns;             /* since when there is nothing; 0: frames come */
	uint32_t nb_held;
	struct rte_mbuf *held[SL_BURST];   /* of the last burst, until the next */
};

static struct sl_port_dpdk *dpdk_of(struct sl_port *port)
{
	return sl_container_of(port, struct sl_port_dpdk, port);
}

/* ---- waiting ----------------------------------------------------------------------------------------------------- */

static void timer_set(struct sl_port_dpdk *d, uint64_t ns)
{
	struct itimerspec when = { .it_value = { .tv_nsec = (long)ns } };

	timerfd_settime(d->timer_fd, 0, &when, NULL);
}

static void interrupt_disarm(struct sl_port_dpdk *d)
{
	uint64_t times;

	if (!d->armed)
		return;
	rte_eth_dev_rx_intr_disable(d->dev.id, 0);
	d->armed = false;
	while (read(d->dev.intr_fd, &times, sizeof(times)) > 0)   /* it must not wake us again */
		;
}

/* Nothing to do for some time: until an interrupt, or for longer each time. */
static void fall_asleep(struct sl_port_dpdk *d, uint64_t now_ns)
{
	uint32_t most = now_ns - d->idle_ns > IDLE_NS ? SLEEP_IDLE_NS : SLEEP_MAX_NS;

	d->sleep_ns = d->awake ? SLEEP_MIN_NS : sl_min(d->sleep_ns * 2, most);
	d->awake = false;
	if (d->dev.intr_fd >= 0 && d->sleep_ns >= SLEEP_MAX_NS && !rte_eth_dev_rx_intr_enable(d->dev.id, 0))
		d->armed = true;
	timer_set(d, d->armed ? SLEEP_ARMED_NS : d->sleep_ns);
}

static void pace(struct sl_port_dpdk *d, bool busy, uint64_t now_ns)
{
	interrupt_disarm(d);
	if (busy) {
		d->idle_ns = 0;
		if (!d->awake)
			timer_set(d, AT_ONCE_NS);
		d->awake = true;
		return;
	}
	if (!d->idle_ns)
		d->idle_ns = now_ns;
	if (!d->awake || now_ns - d->idle_ns > SPIN_NS)
		fall_asleep(d, now_ns);
}

/* ---- receive ----------------------------------------------------------------------------------------------------- */

/* Describes the frame; false: it has more parts than a frame can have, or is too long. */
static bool frame_of(const struct rte_mbuf *m, struct sl_frame *f)
{
	f->nb_seg = 0;
	f->len = m->pkt_len;
	for (; m; m = m->next) {
		if (f->nb_seg == SL_FRAME_SEGS)
			return false;
		f->seg[f->nb_seg++] = (struct iovec){ rte_pktmbuf_mtod(m, void *), m->data_len };
	}
	return f->len <= SL_FRAME_MAX;
}

static uint32_t dpdk_rx_burst(struct sl_port *port, struct sl_frame *frames, uint32_t nb)
{
	struct sl_port_dpdk *d = dpdk_of(port);
	struct rte_mbuf *mbufs[SL_BURST];
	uint64_t now_ns = sl_now_ns();
	uint32_t i, n, out = 0;

	rte_pktmbuf_free_bulk(d->held, d->nb_held);
	d->nb_held = 0;
	port->error = sl_dpdk_device_is_gone(&d->dev) ? -ENXIO : 0;
	sl_classifier_turn(d->classifier, now_ns);
	n = rte_eth_rx_burst(d->dev.id, 0, mbufs, (uint16_t)sl_min(nb, (uint32_t)SL_BURST));
	for (i = 0; i < n; i++) {
		struct sl_classifier_frame in = {
			rte_pktmbuf_mtod(mbufs[i], void *), mbufs[i]->data_len, mbufs[i]->pkt_len, 0,
		};
		bool ours = sl_classifier_run(d->classifier, &in, &frames[out].meta) == XDP_REDIRECT;

		if (ours && frame_of(mbufs[i], &frames[out])) {
			d->held[out++] = mbufs[i];
			continue;
		}
		port->oversize += ours;
		rte_pktmbuf_free(mbufs[i]);
	}
	d->nb_held = out;
	pace(d, n > 0, now_ns);
	return out;
}

/* ---- transmit ---------------------------------------------------------------------------------------------------- */

/* A copy of the frame; NULL: it does not fit, or there is no memory. */
static struct rte_mbuf *mbuf_of(struct sl_port_dpdk *d, const struct sl_frame *f)
{
	struct rte_mbuf *m = rte_pktmbuf_alloc(d->dev.pool);
	uint8_t *to = m ? (uint8_t *)rte_pktmbuf_append(m, (uint16_t)f->len) : NULL;
	uint32_t s;

	if (!to) {
		rte_pktmbuf_free(m);
		return NULL;
	}
	for (s = 0; s < f->nb_seg; to += f->seg[s++].iov_len)
		memcpy(to, f->seg[s].iov_base, f->seg[s].iov_len);
	return m;
}

static uint32_t dpdk_tx_burst(struct sl_port *port, const struct sl_frame *frames, uint32_t nb)
{
	struct sl_port_dpdk *d = dpdk_of(port);
	struct rte_mbuf *mbufs[SL_BURST];
	uint32_t n, sent;

	port->error = 0;
	nb = sl_min(nb, (uint32_t)SL_BURST);
	for (n = 0; n < nb; n++) {
		if (!frames[n].len || frames[n].len > d->dev.frame_max) {
			port->error = -EMSGSIZE;
			break;
		}
		mbufs[n] = mbuf_of(d, &frames[n]);
		if (!mbufs[n]) {
			port->error = -EAGAIN;
			break;
		}
	}
	sent = n ? rte_eth_tx_burst(d->dev.id, 0, mbufs, (uint16_t)n) : 0;
	if (sent < n) {
		rte_pktmbuf_free_bulk(mbufs + sent, n - sent);
		port->error = -EAGAIN;
	}
	return sent;
}

/* ---- open and close ---------------------------------------------------------------------------------------------- */

static void dpdk_stats(struct sl_port *port, struct sl_nic_stats *ret)
{
	struct sl_port_dpdk *d = dpdk_of(port);
	struct rte_eth_stats st = { 0 };

	*ret = (struct sl_nic_stats){ 0 };
	sl_classifier_publish(d->classifier);
	if (!rte_eth_stats_get(d->dev.id, &st))
		*ret = (struct sl_nic_stats){ st.ierrors, st.imissed, st.rx_nombuf };
}

static void dpdk_close(struct sl_port *port)
{
	struct sl_port_dpdk *d = dpdk_of(port);

	rte_pktmbuf_free_bulk(d->held, d->nb_held);
	sl_dpdk_device_stop(&d->dev);
	if (d->timer_fd >= 0)
		close(d->timer_fd);
	if (port->fd >= 0)
		close(port->fd);
	free(d);
}

/* port->fd: an epoll set of the timer and, where there are any, interrupts. */
static int waiting_open(struct sl_port_dpdk *d)
{
	struct epoll_event ev = { .events = EPOLLIN };

	d->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	d->port.fd = epoll_create1(EPOLL_CLOEXEC);
	if (d->timer_fd < 0 || d->port.fd < 0 || epoll_ctl(d->port.fd, EPOLL_CTL_ADD, d->timer_fd, &ev))
		return -errno;
	if (d->dev.intr_fd >= 0 && epoll_ctl(d->port.fd, EPOLL_CTL_ADD, d->dev.intr_fd, &ev))
		return -errno;
	d->awake = true;
	fall_asleep(d, 0);
	return 0;
}

int sl_port_dpdk_open(const struct sl_dpdk_conf *conf, struct sl_dpdk_facts *facts, struct sl_port **ret,
		      char why[SL_DPDK_WHY_LEN])
{
	static const struct sl_port_ops ops = { dpdk_rx_burst, dpdk_tx_burst, dpdk_close, dpdk_stats };
	struct sl_port_dpdk *d = calloc(1, sizeof(*d));
	int err;

	if (!d)
		return -ENOMEM;
	d->port = (struct sl_port){ .ops = &ops, .fd = -1 };
	d->timer_fd = -1;
	d->classifier = conf->classifier;
	err = sl_dpdk_device_start(&d->dev, conf, facts, why);
	if (err) {
		free(d);
		return err;
	}
	err = waiting_open(d);
	if (err) {
		snprintf(why, SL_DPDK_WHY_LEN, "step=waiting error=\"%s\"", strerror(-err));
		dpdk_close(&d->port);
		return err;
	}
	*ret = &d->port;
	return 0;
}
