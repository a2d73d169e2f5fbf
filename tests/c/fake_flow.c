/* SPDX-License-Identifier: Apache-2.0 */
#include "fake_flow.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static struct fake_flow *fake_of(struct sl_flow *f)
{
	return sl_container_of(f, struct fake_flow, flow);
}

/* --- set-up --- */

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

void fake_stop(struct fake *k)
{
	k->layer->stop(&k->inst);
	while (!sl_list_empty(&k->flows)) {
		struct fake_flow *ff = sl_container_of(k->flows.next, struct fake_flow, node);

		sl_list_unlink(&ff->node);
		free(ff->msg);
		free(ff->out);
		sl_pieces_free(&ff->flow.backlog);
		free(ff);
	}
}

static struct fake_flow *flow_new(struct fake *k, bool by_layer, const void *msg, uint32_t len, uint32_t flags)
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

/* --- the library's calls --- */

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
	ff = flow_new(k, true, msg, len, flags);
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

/* One call of data() with bytes of their own. Returns what it took. */
static uint32_t data_show(struct fake_flow *ff, const uint8_t *p, uint32_t len)
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

static void fin_deliver(struct fake_flow *ff)
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

		taken = data_show(ff, p, len);
		if (ff->ended)
			return;
		sl_pieces_drop(&f->backlog, taken);
		if (!taken)
			return;
	}
	fin_deliver(ff);
}

/* --- the instance's calls --- */

struct sl_instance *sl_flow_instance(const struct sl_flow *f)
{
	return &f->edge->fake->inst;
}

struct sl_edge *sl_instance_next_edge(struct sl_instance *inst, unsigned service)
{
	struct fake *k = sl_container_of(inst, struct fake, inst);

	return k->no_next || service >= SL_SERVICE_MAX || !k->layer->back ? NULL : &k->back;
}

const void *sl_instance_conf(struct sl_instance *inst, enum sl_conf_type type, unsigned n, uint32_t *len)
{
	struct fake *k = sl_container_of(inst, struct fake, inst);

	for (unsigned i = 0; i < k->nb_confs; i++) {
		if (k->confs[i].type != type || n--)
			continue;
		*len = k->confs[i].len;
		return k->confs[i].data;
	}
	return NULL;
}

/* As whoever stands outside does it: the folder of the app's configuration, opened. */
int sl_instance_grant(struct sl_instance *inst, enum sl_grant_kind kind, uint32_t number)
{
	uint32_t len;
	const struct sl_app_conf *conf = sl_instance_conf(inst, SL_CONF_APP, 0, &len);

	return kind == SL_GRANT_ROOT && !number && conf && *conf->root ? open((const char *)conf->root, O_PATH | O_DIRECTORY | O_CLOEXEC) : -1;
}

void sl_instance_conf_wipe(struct sl_instance *inst, const void *data, uint32_t len)
{
	(void)inst, (void)data, (void)len;   /* the test's data may be constant */
}

int sl_instance_fail(struct sl_instance *inst, int err, const char *fmt, ...)
{
	struct fake *k = sl_container_of(inst, struct fake, inst);
	va_list args;

	va_start(args, fmt);
	vsnprintf(k->fail, sizeof(k->fail), fmt, args);
	va_end(args);
	return -err;
}

int sl_watch_add(struct sl_instance *inst, struct sl_watch *w)
{
	(void)inst, (void)w;
	return 0;
}

int sl_watch_mod(struct sl_instance *inst, struct sl_watch *w, uint32_t events)
{
	(void)inst;
	w->events = events;
	return 0;
}

void sl_watch_del(struct sl_instance *inst, struct sl_watch *w)
{
	(void)inst, (void)w;
}

void sl_trace_flow(const struct sl_flow *f, enum sl_trace_point point, uint64_t parent)
{
	struct fake *k = f->edge->fake;

	if (f->traced && k->nb_traces < FAKE_TRACES)
		k->traces[k->nb_traces++] = (struct fake_trace){f->request_id, parent, point};
}

uint64_t sl_request_id(struct sl_instance *inst)
{
	struct fake *k = sl_container_of(inst, struct fake, inst);

	return (uint64_t)inst->vm_id << 48 | ++k->next_request_id;
}

/* --- the peer's side --- */

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
	struct fake_flow *ff = flow_new(k, false, msg, len, flags);
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
	struct fake_flow *ff = flow_new(k, false, msg, len, SL_F_MOVE);

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
		taken = data_show(ff, p, (uint32_t)len);
	f->backlog.cut = f->whole;
	if (taken < len && !ff->ended)
		sl_pieces_add(&f->backlog, (const uint8_t *)p + taken, (uint32_t)len - taken);
	fin_deliver(ff);
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
