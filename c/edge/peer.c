/* SPDX-License-Identifier: Apache-2.0 */
#include "edge/peer.h"

#include <stdlib.h>

#include "base/base.h"
#include "edge/edge.h"

struct sl_edge_peer {
	struct sl_edge *edge;
	uint64_t counters[SL_CNT_MAX];
	uint64_t next_request;
	const struct sl_route_page *page;   /* during sl_edge_peer_routes only */
	const int *doorbells;
};

static void count(struct sl_edge *e, enum sl_counter c)
{
	struct sl_edge_peer *p = e->user;

	p->counters[c]++;
}

static uint64_t request_id(struct sl_edge *e)
{
	struct sl_edge_peer *p = e->user;

	return (uint64_t)e->vm_id << 48 | ++p->next_request;
}

static int doorbell(void *user, uint16_t vm_id)
{
	const struct sl_edge_peer *p = user;

	for (uint32_t i = 0; i < sl_min(p->page->nb_routes, (__u32)SL_SIDE_MAX); i++)
		if (p->page->routes[i].vm_id == vm_id)
			return p->doorbells[i];
	return -1;
}

static const struct sl_edge_ops edge_ops = {.count = count, .request_id = request_id};
static const struct sl_flow_ops no_flows;   /* entries are taken by recv, none becomes a flow */

int sl_edge_peer_open(int fd, const struct sl_edge_seat *seat, __u8 layer, __u16 vm_id, struct sl_edge_peer **ret)
{
	struct sl_edge_peer *p = calloc(1, sizeof(*p));
	int err;

	if (!p)
		return -ENOMEM;
	err = sl_edge_attach(fd, true, seat, layer, vm_id, &edge_ops, &no_flows, p, &p->edge);
	if (err) {
		free(p);
		return err;
	}
	*ret = p;
	return 0;
}

void sl_edge_peer_close(struct sl_edge_peer *p)
{
	if (!p)
		return;
	sl_edge_detach(p->edge);
	free(p);
}

void sl_edge_peer_routes(struct sl_edge_peer *p, const struct sl_route_page *page, const int *doorbells)
{
	p->page = page;
	p->doorbells = doorbells;
	sl_edge_routes_set(p->edge, page, doorbell);
	p->page = NULL;
}

static struct sl_link *link_to(struct sl_edge *e, uint16_t vm_id)
{
	if (!vm_id)
		return sl_select_best_vm(e);
	for (unsigned i = 0; i < e->nb_up; i++)
		if (e->up[i]->vm_id == vm_id && !e->up[i]->quarantined)
			return e->up[i];
	return NULL;
}

int sl_edge_peer_send(struct sl_edge_peer *p, __u16 vm_id, const struct sl_request_packet *head, const void *data,
		      __u32 len)
{
	struct sl_link *l = link_to(p->edge, vm_id);
	struct sl_request_packet packet = *head;
	struct sl_buf buf = {0};

	if (!l)
		return -ENETUNREACH;
	if (len > p->edge->g.big_len)
		return -EMSGSIZE;
	sl_link_reap(l);
	if (!sl_link_room(l) || (len && sl_buf_alloc(p->edge, len, &buf)))
		return -EAGAIN;
	if (buf.cap < len) {
		sl_buf_free(p->edge, &buf);
		return -EAGAIN;
	}
	if (len)
		memcpy(buf.data, data, len);
	packet.length = len;
	sl_route_request(l, &packet, len ? &buf : NULL, NULL);   /* there is room */
	return l->vm_id;
}

__u32 sl_edge_peer_signal(struct sl_edge_peer *p)
{
	return sl_signal_vm(p->edge);
}

int sl_edge_peer_recv(struct sl_edge_peer *p, __u16 status, struct sl_request_packet *packet, void *data, __u32 cap)
{
	struct sl_edge *e = p->edge;

	for (unsigned i = 0; i < e->nb_up; i++) {
		struct sl_link *l = e->up[i];
		uint32_t seq;

		sl_link_reap(l);
		if (!sl_link_recv(l, packet, 1, &seq))
			continue;
		if (packet->op == SL_OP_OPEN || packet->op == SL_OP_DATA)
			memcpy(data, sl_payload(e, packet), sl_min(packet->length, cap));
		sl_link_complete(l, seq, 1, (enum sl_request_status)status);
		return 1;
	}
	return 0;
}

int sl_edge_peer_sleep(struct sl_edge_peer *p, int asleep)
{
	sl_edge_sleep_set(p->edge, asleep != 0);
	return asleep && sl_edge_pending(p->edge);
}

__u32 sl_edge_peer_outstanding(const struct sl_edge_peer *p)
{
	uint32_t sum = 0;

	for (unsigned i = 0; i < p->edge->nb_up; i++) {
		sl_link_reap(p->edge->up[i]);
		sum += p->edge->up[i]->tx.prod - p->edge->up[i]->tx.oldest;
	}
	return sum;
}

__u64 sl_edge_peer_counter(const struct sl_edge_peer *p, __u32 counter)
{
	return counter < SL_CNT_MAX ? p->counters[counter] : 0;
}
