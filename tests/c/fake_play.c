/* SPDX-License-Identifier: Apache-2.0 */
/* What a test does: a world, and the other ends of its flows. */
#include "fake_parts.h"

#include <stdlib.h>

void fake_init(struct fake *k, const struct sl_layer *layer)
{
	memset(k, 0, sizeof(*k));
	k->layer = k->inst.layer = layer;
	k->front.fake = k->back.fake = k;
	k->window = 1u << 30;
	k->slot_len = SL_BIG_LEN;
	k->slots = UINT32_MAX;
	k->inst.vm_id = 7;
	k->inst.state = SL_VM_ACTIVE;
	k->inst.now_ns = 1000000000000;
	sl_list_init(&k->flows);
	sl_list_init(&k->inst.answers);
	sl_wheel_init(&k->inst.wheel, k->inst.now_ns / 1000000);
}

void fake_conf(struct fake *k, enum sl_conf_type type, const void *data, uint32_t len)
{
	k->confs[k->nb_confs].type = type;
	k->confs[k->nb_confs].data = data;
	k->confs[k->nb_confs++].len = len;
}

int fake_start(struct fake *k)
{
	int err = k->layer->load ? k->layer->load(&k->inst) : 0;

	err = err ? err : k->layer->init(&k->inst);
	if (!err && k->layer->start)
		err = k->layer->start(&k->inst);
	return err;
}

void fake_flows_free(struct fake *k)
{
	while (!sl_list_empty(&k->flows)) {
		struct fake_flow *ff = sl_container_of(k->flows.next, struct fake_flow, node);

		sl_list_unlink(&ff->node);
		free(ff->msg);
		free(ff->out);
		sl_pieces_free(&ff->flow.backlog);
		free(ff);
	}
}

void fake_stop(struct fake *k)
{
	k->layer->stop(&k->inst);
	fake_flows_free(k);
}

/* over() of the flows that both sides have finished comes here: never from within a call of the layer */
static void turn_end(struct fake *k)
{
	for (struct sl_list *n = k->flows.next; n != &k->flows; n = n->next) {
		struct fake_flow *ff = sl_container_of(n, struct fake_flow, node);
		struct sl_flow *f = &ff->flow;

		if (ff->ended || !f->tx_fin || !f->rx_fin || f->fin_due || sl_flow_backlog(f))
			continue;
		ff->ended = true;
		f->ops->over(f, SL_COMPLETED);
	}
	if (k->nb_bufs)
		abort();   /* a reserved slot was forgotten */
}

struct fake_flow *fake_open(struct fake *k, const void *msg, uint32_t len, uint32_t flags, int *status)
{
	struct fake_flow *ff = fake_flow_new(k, false, msg, len, flags);
	int r;

	ff->flow.request_id = 1ull << 48 | ++k->next_request_id;
	ff->flow.rx_fin = flags & SL_F_FIN;
	r = k->layer->front->open(&ff->flow, ff->msg, len, flags & SL_F_FIN);
	if (status)
		*status = r;
	if (r)
		ff->ended = true;
	turn_end(k);
	return r ? NULL : ff;
}

struct fake_flow *fake_take_over(struct fake *k, uint64_t request_id, const void *msg, uint32_t len)
{
	struct fake_flow *ff = fake_flow_new(k, false, msg, len, SL_F_MOVE);

	ff->flow.request_id = request_id;
	ff->flow.moved = true;
	if (k->layer->front->open(&ff->flow, ff->msg, len, false)) {
		ff->ended = true;
		return NULL;
	}
	turn_end(k);
	return ff;
}

bool fake_orphan(struct fake_flow *ff)
{
	ff->orphan = true;
	if (ff->flow.ops->orphaned && ff->flow.ops->orphaned(&ff->flow))
		return true;
	ff->orphan = false;
	fake_reset(ff, SL_ERROR_PEER_GONE);
	return false;
}

void fake_resumed(struct fake_flow *ff, const struct sl_flow_marks *m)
{
	ff->flow.tx_fin = m->got_fin;
	ff->flow.ops->resumed(&ff->flow, m);
	turn_end(ff->fake);
}

void fake_hand_over(struct fake_flow *ff)
{
	ff->flow.ops->hand_over(&ff->flow);
	turn_end(ff->fake);
}

void fake_collected(struct fake_flow *ff)
{
	fake_out_drop(ff);
	ff->acked = 0;
	ff->state_len = 0;
	ff->dirty = false;
}

void fake_send(struct fake_flow *ff, const void *p, size_t len, uint32_t flags)
{
	struct sl_flow *f = &ff->flow;
	uint32_t taken = 0;

	if (ff->ended)
		return;
	if (flags & SL_F_FIN)
		f->rx_fin = f->fin_due = true;
	if (len && !sl_flow_backlog(f))
		taken = fake_data_show(ff, p, (uint32_t)len);
	f->backlog.cut = f->whole;
	if (taken < len && !ff->ended)
		sl_pieces_add(&f->backlog, (const uint8_t *)p + taken, (uint32_t)len - taken);
	fake_fin_deliver(ff);
	turn_end(ff->fake);
}

void fake_reset(struct fake_flow *ff, enum sl_request_status status)
{
	if (ff->ended)
		return;
	ff->ended = true;
	ff->flow.ops->over(&ff->flow, status);
	turn_end(ff->fake);
}

void fake_die(struct fake_flow *ff, bool unseen)
{
	ff->flow.unseen = unseen;
	fake_reset(ff, SL_ERROR_PEER_GONE);
}

static void unblock(struct fake_flow *ff)
{
	if (!ff->flow.blocked || ff->ended)
		return;
	ff->flow.blocked = false;
	ff->flow.ops->writable(&ff->flow);
}

void fake_credit(struct fake_flow *ff, uint32_t bytes)
{
	ff->flow.tx_window += bytes;
	unblock(ff);
	turn_end(ff->fake);
}

void fake_slots(struct fake *k, uint32_t n)
{
	k->slots = n;
	for (struct sl_list *l = k->flows.next; l != &k->flows; l = l->next)
		unblock(sl_container_of(l, struct fake_flow, node));
	turn_end(k);
}

void fake_out_drop(struct fake_flow *ff)
{
	ff->out_len = 0;
	ff->out[0] = 0;
}

void fake_tick(struct fake *k, uint64_t ms)
{
	while (ms) {   /* in steps of the wheel, so that timers that arm timers fire in order */
		uint64_t step = sl_min(ms, (uint64_t)SL_WHEEL_MS);

		ms -= step;
		k->inst.now_ns += step * 1000000;
		sl_wheel_run(&k->inst.wheel, k->inst.now_ns / 1000000);
		turn_end(k);
	}
}

struct fake_flow *fake_last_opened(struct fake *k)
{
	for (struct sl_list *n = k->flows.prev; n != &k->flows; n = n->prev) {
		struct fake_flow *ff = sl_container_of(n, struct fake_flow, node);

		if (ff->by_layer)
			return ff;
	}
	return NULL;
}
