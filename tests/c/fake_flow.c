/* SPDX-License-Identifier: Apache-2.0 */
/* The flow library as a layer sees it. */
#include "fake_parts.h"

#include <stdlib.h>

static struct fake_flow *fake_of(struct sl_flow *f)
{
	return sl_container_of(f, struct fake_flow, flow);
}

struct fake_flow *fake_flow_new(struct fake *k, bool by_layer, const void *msg, uint32_t len, uint32_t flags)
{
	struct fake_flow *ff = calloc(1, sizeof(*ff));

	ff->fake = k;
	ff->by_layer = by_layer;
	ff->flow.edge = by_layer ? &k->back : &k->front;
	ff->flow.ops = by_layer ? k->layer->back : k->layer->front;
	ff->flow.peer_vm = by_layer ? 9 : 8;
	ff->flow.tx_window = k->window;
	ff->flow.traced = flags & SL_F_TRACE;
	ff->out = calloc(1, 1);
	ff->open_flags = flags;
	ff->msg = malloc(len + 1);
	memcpy(ff->msg, msg, len);
	ff->msg_len = len;
	sl_list_append(&k->flows, &ff->node);
	return ff;
}

int sl_flow_open(struct sl_edge *e, uint64_t request_id, const void *msg, uint32_t len, uint32_t flags, void *user,
		 struct sl_flow **ret)
{
	struct fake *k = e->fake;
	struct fake_flow *ff;

	if (k->open_err)
		return k->open_err;
	if (len > SL_BIG_LEN)
		return -EMSGSIZE;
	if (!k->slots)
		return -EAGAIN;
	if (k->slots != UINT32_MAX)
		k->slots--;
	ff = fake_flow_new(k, true, msg, len, flags);
	ff->flow.user = user;
	ff->flow.request_id = request_id ? request_id : sl_request_id(&k->inst);
	ff->flow.tx_fin = ff->out_fin = flags & SL_F_FIN;
	k->nb_opened++;
	*ret = &ff->flow;
	return 0;
}

uint32_t sl_flow_reserve(struct sl_flow *f, uint32_t want, struct sl_buf *buf)
{
	struct fake *k = fake_of(f)->fake;
	uint32_t len = sl_min(want, f->tx_window);

	len = sl_min(len, k->slot_len);
	if (f->piece_max)
		len = sl_min(len, f->piece_max);
	if (fake_of(f)->ended || f->tx_fin)
		return 0;
	if (fake_of(f)->orphan) {
		f->blocked = true;
		return 0;
	}
	if (!len || !k->slots) {
		f->blocked = true;
		return 0;
	}
	buf->cap = len;
	buf->data = malloc(len);
	k->nb_bufs++;
	return len;
}

static void out_add(struct fake_flow *ff, const void *p, uint32_t len)
{
	ff->out = realloc(ff->out, ff->out_len + len + 1);
	memcpy(ff->out + ff->out_len, p, len);
	ff->out_len += len;
	ff->out[ff->out_len] = 0;
}

void sl_flow_commit(struct sl_flow *f, struct sl_buf *buf, uint32_t len, uint32_t flags)
{
	struct fake_flow *ff = fake_of(f);

	if (!len || len > buf->cap || f->tx_fin)
		abort();   /* against the contract */
	if (ff->fake->slots != UINT32_MAX)
		ff->fake->slots--;
	out_add(ff, buf->data, len);
	ff->dirty = true;
	if (ff->fake->sent)
		ff->fake->sent(ff, buf->data, len);
	ff->got_mark = f->mark;
	ff->nb_commits++;
	f->tx_window -= len;
	if (flags & SL_F_FIN)
		f->tx_fin = ff->out_fin = true;
	sl_buf_free(f->edge, buf);
}

void sl_buf_free(struct sl_edge *e, struct sl_buf *buf)
{
	e->fake->nb_bufs--;
	free(buf->data);
	buf->data = NULL;
}

uint32_t sl_flow_write(struct sl_flow *f, const void *p, uint32_t len)
{
	uint32_t done = 0, room;
	struct sl_buf buf;

	while (done < len && (room = sl_flow_reserve(f, len - done, &buf))) {
		memcpy(buf.data, (const uint8_t *)p + done, room);
		sl_flow_commit(f, &buf, room, 0);
		done += room;
	}
	return done;
}

void sl_flow_fin(struct sl_flow *f)
{
	f->tx_fin = fake_of(f)->out_fin = fake_of(f)->dirty = true;
	f->blocked = false;
}

void sl_flow_reset(struct sl_flow *f, enum sl_request_status status)
{
	struct fake_flow *ff = fake_of(f);

	if (ff->ended)
		return;
	ff->ended = ff->out_reset = true;
	ff->out_status = status;
	f->blocked = false;
}

void sl_flow_drain(struct sl_flow *f)
{
	f->drained = true;
}

bool sl_flow_reserve_whole(struct sl_flow *f, uint32_t len, struct sl_buf *buf)
{
	uint32_t room = sl_flow_reserve(f, len, buf);

	if (room && room < len) {
		sl_buf_free(f->edge, buf);
		f->blocked = true;
	}
	return room >= len;
}

bool sl_flow_published(const struct sl_flow *f)
{
	const struct fake_flow *ff = sl_container_of(f, struct fake_flow, flow);

	return !(ff->fake->manual && ff->dirty);
}

void sl_flow_publish(struct sl_flow *f)
{
	(void)f;
}

bool sl_flow_delivered(const struct sl_flow *f)
{
	return sl_flow_published(f);
}

void sl_flow_ack(struct sl_flow *f, uint32_t len, uint64_t mark)
{
	fake_of(f)->dirty = true;
	fake_of(f)->acked += len;
	fake_of(f)->ack_mark = mark;
}

int sl_flow_state(struct sl_flow *f, const void *msg, uint32_t len)
{
	if (!fake_of(f)->fake->slots)
		return -EAGAIN;
	fake_of(f)->dirty = true;
	memcpy(fake_of(f)->state, msg, len);
	fake_of(f)->state_len = len;
	return 0;
}

int sl_flow_take_over(struct sl_edge *e, uint16_t vm_id, uint64_t request_id, const void *msg, uint32_t len, void *user,
		      struct sl_flow **ret)
{
	return vm_id == 9 ? sl_flow_open(e, request_id, msg, len, SL_F_MOVE, user, ret) : -ENETUNREACH;
}

void sl_flow_give_up(struct sl_flow *f)
{
	fake_of(f)->out_moved = true;
	sl_flow_reset(f, SL_ERROR_PEER_GONE);
}

bool sl_flow_hand_over(struct sl_flow *f)
{
	return fake_of(f)->out_hand_over = true;
}

void sl_flow_keep(struct sl_flow *f, uint32_t piece_max)
{
	f->keeps = true;
	f->piece_max = piece_max;
}

void sl_flow_adopt(struct sl_flow *f, struct sl_flow *heir)
{
	f->flow_id = heir->flow_id;
	fake_of(f)->orphan = false;
	fake_of(heir)->ended = true;
}

int sl_flow_reopen(struct sl_flow *f, const void *state, uint32_t len)
{
	(void)f, (void)state, (void)len;
	return -ENETUNREACH;
}

uint32_t fake_data_show(struct fake_flow *ff, const uint8_t *p, uint32_t len)
{
	uint8_t *copy = malloc(len);
	uint32_t taken;

	memcpy(copy, p, len);
	ff->flow.in_data = true;
	taken = ff->flow.ops->data(&ff->flow, copy, len);
	ff->flow.in_data = false;
	memset(copy, 0xaa, len);
	free(copy);
	if (taken > len)
		abort();
	return taken;
}

void fake_fin_deliver(struct fake_flow *ff)
{
	if (!ff->flow.fin_due || sl_flow_backlog(&ff->flow) || ff->ended)
		return;
	ff->flow.fin_due = false;
	ff->flow.ops->fin(&ff->flow);
}

void sl_flow_resume(struct sl_flow *f)
{
	struct fake_flow *ff = fake_of(f);

	if (f->in_data || ff->ended)
		return;
	while (sl_flow_backlog(f)) {
		uint32_t at = 0, len, taken;
		const uint8_t *p = sl_pieces_next(&f->backlog, &at, &len);

		taken = fake_data_show(ff, p, len);
		if (ff->ended)
			return;
		sl_pieces_drop(&f->backlog, taken);
		if (!taken)
			return;
	}
	fake_fin_deliver(ff);
}
