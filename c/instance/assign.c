/* SPDX-License-Identifier: Apache-2.0 */
/* Becoming what the assignment says: letting go of one layer, and taking the next. */
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/atomic.h"
#include "base/wipe.h"
#include "instance/guest.h"
#include "instance/instance.h"

/* --- what was granted --- */

void sl_grants_drop(struct sl_runner *r)
{
	for (uint32_t i = 0; i < r->granted.nb; i++)
		if (r->granted_fds[i] >= 0)
			close(r->granted_fds[i]);
	r->granted.nb = r->granted.assignment = 0;
}

int sl_instance_grant(struct sl_instance *inst, enum sl_grant_kind kind, uint32_t number)
{
	struct sl_runner *r = sl_runner_of(inst);

	for (uint32_t i = 0; i < r->granted.nb; i++) {
		const struct sl_grant *g = &r->granted.entries[i];
		int fd = r->granted_fds[i];

		if (g->kind != (uint32_t)kind || g->number != number || fd < 0)
			continue;
		r->granted_fds[i] = -1;
		return fd;
	}
	return -1;
}

/* As many descriptors as entries, or none: *r holds what came, and has closed what came before. */
static int message_take(struct sl_runner *r)
{
	union {
		char room[CMSG_SPACE(sizeof(r->granted_fds))];
		struct cmsghdr align;
	} control;
	struct sl_grants got;
	struct iovec v = {&got, sizeof(got)};
	struct msghdr m = {.msg_iov = &v, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(r->grants_sock, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	const struct cmsghdr *c;
	size_t nb;

	if (n <= 0)
		return n ? -errno : -ECONNRESET;
	sl_grants_drop(r);
	c = CMSG_FIRSTHDR(&m);
	nb = c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS ? (c->cmsg_len - CMSG_LEN(0)) / sizeof(int) : 0;
	if (nb)
		memcpy(r->granted_fds, CMSG_DATA(c), nb * sizeof(int));
	r->granted = got;
	r->granted.nb = (uint32_t)nb;
	return n == (ssize_t)(offsetof(struct sl_grants, entries) + nb * sizeof(struct sl_grant)) && got.nb == nb ? 0 : -EPROTO;
}

void sl_grants_recv(struct sl_runner *r)
{
	int err;

	while (!(err = message_take(r)))
		r->assignment_due = true;
	if (err == -EAGAIN || err == -EINTR)
		return;
	sl_watch_del(&r->inst, &r->grants_watch);
	sl_log(&r->log, "warning", "the socket of grants is gone (%s): no other assignment can be taken", strerror(-err));
}

/* --- the former layer --- */

void sl_layer_leave(struct sl_runner *r)
{
	const struct sl_layer *layer = r->inst.layer;

	for (unsigned i = 0; i < r->nb_edges; i++)
		sl_edge_turn_end(r->edges[i]);   /* flows that are complete are over before the layer is */
	if (layer && layer->stop)
		layer->stop(&r->inst);
	for (unsigned i = 0; i < r->nb_edges; i++)
		sl_signal_vm(r->edges[i]);
}

static void edges_detach(struct sl_runner *r)
{
	for (unsigned i = 0; i < SL_EDGES_MAX; i++) {
		if (!r->edges[i])
			continue;
		sl_publish_u32(&r->edges[i]->self->incarnation, 0);   /* the place is nobody's */
		sl_edge_detach(r->edges[i]);
		if (r->guest)
			sl_guest_edge_forget(r, i);
		r->edges[i] = NULL;
	}
	r->nb_edges = 0;
	memset(r->routes_seen, 0, sizeof(r->routes_seen));
}

/* Nothing is left: neither a client's bytes nor a key, nor what was counted for the layer. */
static void let_go(struct sl_runner *r)
{
	struct sl_instance *inst = &r->inst;

	sl_layer_leave(r);
	edges_detach(r);
	sl_wheel_init(&inst->wheel, inst->now_ns / 1000000);
	sl_list_init(&inst->answers);
	inst->layer = NULL;
	inst->layer_state = NULL;
	inst->draining = false;
	inst->active_flows = 0;
	inst->requests = inst->bytes_in = inst->bytes_out = 0;
	memset(inst->counters, 0, sizeof(inst->counters));
	memset(inst->latency, 0, sizeof(inst->latency));
	inst->crypto = (struct sl_crypto_figures){ 0 };
	sl_memory_wipe();
}

/* --- the next one --- */

static const struct sl_layer *layer_find(uint8_t id)
{
	for (unsigned i = 0; sl_layers[i]; i++)
		if (sl_layers[i]->id == id)
			return sl_layers[i];
	return NULL;
}

int sl_layers_load(struct sl_runner *r)
{
	for (unsigned i = 0; sl_layers[i]; i++) {
		int err = sl_layers[i]->load ? sl_layers[i]->load(&r->inst) : 0;

		if (err)
			return sl_instance_fail(&r->inst, -err, "layer %s can not be loaded: %s", sl_layers[i]->name, strerror(-err));
	}
	return 0;
}

static int edges_attach(struct sl_runner *r)
{
	const struct sl_assignment *a = &r->inst.assignment;

	for (unsigned i = 0; i < a->nb_edges; i++) {
		int fd = sl_instance_grant(&r->inst, SL_GRANT_EDGE, a->edges[i].edge_id), err;

		if (fd < 0)
			return sl_instance_fail(&r->inst, EINVAL, "assignment: the memory of edge %#x was not granted", a->edges[i].edge_id);
		err = sl_edge_take(r, i, fd);
		if (err)
			return err;
		r->nb_edges = i + 1;
	}
	return 0;
}

static int layer_init(struct sl_runner *r)
{
	struct sl_instance *inst = &r->inst;
	const struct sl_layer *layer = layer_find(inst->assignment.layer);

	if (!layer)
		return sl_instance_fail(inst, ENOENT, "no layer number %u in this build", inst->assignment.layer);
	if (inst->assignment.nb_edges > SL_EDGES_MAX)
		return sl_instance_fail(inst, EINVAL, "assignment: too many edges");
	inst->layer = layer;
	snprintf(r->log.who, sizeof(r->log.who), "\"vm_id\":%u,\"layer\":\"%s\"", inst->vm_id, layer->name);
	return layer->init ? layer->init(inst) : 0;
}

/* What can be done before the grants are here. */
static int prepare(struct sl_runner *r)
{
	const struct sl_layer *layer = layer_find(r->inst.assignment.layer);

	return layer && layer->early ? layer_init(r) : 0;
}

static int take(struct sl_runner *r)
{
	struct sl_instance *inst = &r->inst;
	int err = inst->layer ? 0 : layer_init(r);

	err = err ? err : edges_attach(r);
	err = !err && inst->layer->start ? inst->layer->start(inst) : err;
	sl_grants_drop(r);
	return err;
}

int sl_assignment_poll(struct sl_runner *r)
{
	struct sl_assignment next;
	int err;

	r->assignment_due = false;
	if (sl_peek_u32(&r->assignment->seq) != r->inst.assignment.seq && sl_seq_copy(&r->assignment->seq, &next, r->assignment, sizeof(next))) {
		if (r->inst.layer)
			let_go(r);
		r->inst.assignment = next;
		r->waiting = next.layer != SL_LAYER_NONE;
		if (r->guest)
			sl_guest_ask(r);
		sl_state_set(r, r->waiting ? SL_VM_BOOTING : SL_VM_READY);
		err = prepare(r);
		if (err)
			return err;
	}
	if (!r->waiting || r->granted.assignment != r->inst.assignment.seq)
		return 0;
	r->waiting = false;
	err = take(r);
	if (!err)
		sl_state_set(r, SL_VM_READY);
	return err;
}
