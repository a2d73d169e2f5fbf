/* SPDX-License-Identifier: Apache-2.0 */
/* The control region from the instance's side: assignment, commands, routes in; VMStatus and trace out. */
#include <stdarg.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/atomic.h"
#include "instance/guest.h"
#include "instance/instance.h"

/* Copies what its writer guards by *seq. Returns the even seq of a consistent copy, or 0 if the writer was in between
 * each time. */
uint32_t sl_seq_copy(const __u32 *seq, void *to, const void *from, size_t len)
{
	for (int tries = 0; tries < 1000; tries++) {
		uint32_t before = sl_observe_u32(seq);

		if (before & 1)
			continue;
		memcpy(to, from, len);
		sl_copied_once();
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (sl_peek_u32(seq) == before && before)
			return before;
	}
	return 0;
}

static void seq_begin(__u32 *seq)
{
	sl_post_u32(seq, *seq | 1);
	sl_full_fence();   /* no store of the body may become visible before the odd number */
}

static void seq_end(__u32 *seq)
{
	sl_publish_u32(seq, *seq + 1);
}

static bool inside(uint32_t off, size_t len)
{
	return off >= sizeof(struct sl_control) && off % 8 == 0 && (uint64_t)off + len <= SL_CONTROL_LEN;
}

int sl_control_map(int fd, uint16_t vm_id, struct sl_control **ret)
{
	struct sl_control *c = sl_memory_len(fd) < SL_CONTROL_LEN ? MAP_FAILED
		: mmap(NULL, SL_CONTROL_LEN, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);

	if (c == MAP_FAILED)
		return -ENOMEM;
	if (sl_observe_u32(&c->magic) != SL_CONTROL_MAGIC || c->abi_version != SL_ABI_VERSION)
		return -EPROTO;
	if (c->vm_id != vm_id || !inside(c->assignment_off, sizeof(struct sl_assignment)) ||
	    !inside(c->routes_off, SL_EDGES_MAX * sizeof(struct sl_route_page)) || !inside(c->status_off, sizeof(struct sl_vm_status)) ||
	    !inside(c->trace_off, sizeof(struct sl_trace)) || !inside(c->conf_off, SL_CONF_LEN))
		return -EINVAL;
	*ret = c;
	return 0;
}

int sl_control_attach(struct sl_runner *r)
{
	struct sl_control *c;
	int err = sl_control_map(r->control_fd, r->doorbells.vm_id, &c);

	sl_list_init(&r->inst.answers);
	if (err == -EPROTO)
		return sl_instance_fail(&r->inst, EPROTO, "control region: not of ABI version %d", SL_ABI_VERSION);
	if (err)
		return sl_instance_fail(&r->inst, -err, err == -EINVAL ? "control region: contradictory header" : "control region: can not be mapped");
	r->control = c;
	r->assignment = (void *)((char *)c + c->assignment_off);
	r->routes = (void *)((char *)c + c->routes_off);
	r->status = (void *)((char *)c + c->status_off);
	r->trace = (void *)((char *)c + c->trace_off);
	r->inst.vm_id = (uint16_t)c->vm_id;
	r->spin_ns = (uint64_t)c->spin_us * 1000;
	r->hardware = sl_cpu_hardware();
	return 0;
}

/* --- edges --- */

static void edge_count(struct sl_edge *e, enum sl_counter c)
{
	struct sl_runner *r = e->user;

	r->inst.counters[c]++;
}

static void edge_shut_out(struct sl_edge *e, uint16_t vm_id, enum sl_counter why)
{
	struct sl_runner *r = e->user;

	r->inst.shut_out = (struct sl_shut_out){vm_id, (uint16_t)why, r->inst.shut_out.count + 1};
}

static uint64_t edge_request_id(struct sl_edge *e)
{
	struct sl_runner *r = e->user;

	return sl_request_id(&r->inst);
}

static bool edge_ring(struct sl_edge *e, uint16_t vm_id)
{
	const struct sl_runner *r = e->user;

	return sl_guest_ring(r->guest, vm_id);
}

static const struct sl_edge_ops edge_ops = {.count = edge_count, .request_id = edge_request_id, .shut_out = edge_shut_out};
static const struct sl_edge_ops guest_edge_ops = {.count = edge_count, .request_id = edge_request_id, .shut_out = edge_shut_out,
	.ring = edge_ring};

int sl_edge_take(struct sl_runner *r, unsigned n, int fd)
{
	const struct sl_edge_seat *seat = &r->inst.assignment.edges[n];
	const struct sl_flow_ops *ops = seat->side == SL_BACK ? r->inst.layer->front : r->inst.layer->back;
	int err;

	if (!ops) {
		close(fd);
		return sl_instance_fail(&r->inst, EINVAL, "layer %s has nothing on that side of an edge", r->inst.layer->name);
	}
	err = sl_edge_attach(fd, !r->guest, seat, r->inst.layer->id, r->inst.vm_id, r->guest ? &guest_edge_ops : &edge_ops, ops, r,
			     &r->edges[n]);
	if (!err && r->guest)
		return sl_guest_edge_watch(r, n, fd);
	close(fd);   /* the mapping is the permission; the descriptor is not needed for it */
	return err ? sl_instance_fail(&r->inst, -err, "edge %#x: %s", seat->edge_id, strerror(-err)) : 0;
}

/* --- commands and routes --- */

static int doorbell_of(void *user, uint16_t vm_id)
{
	struct sl_runner *r = user;

	if (r->guest)
		return 0;   /* any peer may be rung: edge_ring does it, and the host decides */
	return vm_id < SL_VM_MAX ? r->doorbells.peer[vm_id] : -1;
}

/* Whether there was a new page. */
static bool routes_poll(struct sl_runner *r, unsigned i)
{
	struct sl_route_page page;

	if (sl_peek_u32(&r->routes[i].seq) == r->routes_seen[i])
		return false;
	r->routes_seen[i] = sl_seq_copy(&r->routes[i].seq, &page, &r->routes[i], sizeof(page));
	/* one written for another assignment is of another edge */
	if (!r->routes_seen[i] || page.assignment != r->inst.assignment.seq)
		return false;
	sl_edge_routes_set(r->edges[i], &page, doorbell_of);
	return true;
}

static void command(struct sl_runner *r)
{
	switch (sl_peek_u32(&r->control->cmd)) {
	case SL_CMD_RUN:
		if (r->inst.state == SL_VM_READY)
			sl_state_set(r, SL_VM_ACTIVE);
		break;
	case SL_CMD_DRAIN:
		if (r->inst.draining)
			break;
		r->inst.draining = true;
		sl_state_set(r, SL_VM_DRAINING);
		for (unsigned i = 0; i < r->nb_edges; i++)
			if (r->edges[i]->side == SL_FRONT && !r->inst.layer->moves)
				sl_edge_drain(r->edges[i]);
		if (r->inst.layer->drain)
			r->inst.layer->drain(&r->inst);
		break;
	case SL_CMD_STOP:
		r->stopping = true;
		break;
	default:
		break;
	}
}

void sl_control_poll(struct sl_runner *r)
{
	uint32_t seq = sl_observe_u32(&r->control->cmd_seq);
	bool news = false, told = seq != r->cmd_seen;

	if (sl_peek_u32(&r->assignment->seq) != r->inst.assignment.seq)
		r->assignment_due = true;
	for (unsigned i = 0; i < r->nb_edges; i++)
		news |= routes_poll(r, i);
	r->inst.trace_every = sl_peek_u32(&r->control->trace_every);
	if (told) {
		r->cmd_seen = seq;
		command(r);
	}
	if (news || told)   /* somebody waits until its peers know it */
		sl_status_publish(r, true);
}

/* --- VMStatus and trace --- */

static uint32_t pending_entries(const struct sl_runner *r)
{
	uint32_t sum = 0;

	for (unsigned i = 0; i < r->nb_edges; i++)
		for (unsigned k = 0; k < r->edges[i]->nb_up; k++)
			sum += sl_link_waiting(r->edges[i]->up[k]);
	return sum;
}

static void manager_ring(struct sl_runner *r)
{
	uint64_t one = 1;

	if (r->guest)
		sl_guest_ring(r->guest, SL_VM_MANAGER);
	else if (r->doorbells.peer[SL_VM_MANAGER] >= 0 &&
	    write(r->doorbells.peer[SL_VM_MANAGER], &one, sizeof(one)) != sizeof(one))
		return;   /* full: it has been rung */
}

void sl_busy_account(struct sl_runner *r, uint64_t now_ns)
{
	r->busy_ns += now_ns - r->awake_since;
	r->awake_since = now_ns;
}

static void load_measure(struct sl_runner *r)
{
	uint64_t now = sl_now_ns(), span = now - r->busy_since;

	sl_busy_account(r, now);
	if (span < SL_HEARTBEAT_NS)
		return;
	/* half the former value: a smooth second rather than a jumping tenth */
	r->load = (uint32_t)((r->load + sl_min((r->busy_ns - r->busy_before) * 1000 / span, (uint64_t)1000)) / 2);
	r->busy_before = r->busy_ns;
	r->busy_since = now;
}

static void peer_lines_post(struct sl_runner *r)
{
	for (unsigned i = 0; i < r->nb_edges; i++) {
		struct sl_peer *self = r->edges[i]->self;

		sl_post_u64(&self->heartbeat_ns, r->inst.now_ns);
		sl_post_u32(&self->load, r->load);
		__atomic_store_n(&self->state, r->inst.state, __ATOMIC_RELAXED);
	}
}

void sl_status_publish(struct sl_runner *r, bool tell)
{
	struct sl_vm_status *s = r->status;
	uint32_t depth = pending_entries(r);

	load_measure(r);
	peer_lines_post(r);
	r->published_ns = r->inst.now_ns;
	seq_begin(&s->seq);
	s->vm_id = r->inst.vm_id;
	s->state = r->inst.state;
	s->nb_layers = r->inst.layer ? 1 : 0;
	s->protocol_layers[0] = r->inst.layer ? r->inst.layer->id : SL_LAYER_NONE;
	s->heartbeat_ns = r->inst.now_ns;
	s->hardware_affinity = r->hardware | (r->inst.crypto.kind == SL_CRYPTO_DEVICE ? SL_HARDWARE_CRYPTO : 0);
	s->load = r->load;
	s->available_capacity = r->inst.state == SL_VM_ACTIVE ? 1000 - r->load : 0;
	s->active_flows = r->inst.active_flows;
	s->queue_depth = depth;
	s->oldest_ns = sl_answer_oldest(&r->inst);
	s->cmd_seen = r->cmd_seen;
	s->assignment_seen = r->inst.assignment.seq;
	for (unsigned i = 0; i < SL_EDGES_MAX; i++)
		s->routes_seen[i] = i < r->nb_edges ? r->edges[i]->routes_epoch : 0;
	s->pid = (__u32)getpid();
	s->error = (__u32)r->error_code;
	s->busy_ns = r->busy_ns;
	s->requests = r->inst.requests;
	s->bytes_in = r->inst.bytes_in;
	s->bytes_out = r->inst.bytes_out;
	memcpy(s->counters, r->inst.counters, sizeof(s->counters));
	memcpy(s->latency, r->inst.latency, sizeof(s->latency));
	s->crypto = r->inst.crypto;
	s->shut_out = r->inst.shut_out;
	s->flooded = r->flooded;
	memcpy(s->text, r->error, sizeof(s->text));
	seq_end(&s->seq);
	if (tell)
		manager_ring(r);
}

void sl_state_set(struct sl_runner *r, enum sl_vm_state state)
{
	r->inst.state = (uint8_t)state;
	r->inst.now_ns = sl_now_ns();
	sl_status_publish(r, true);
}

/* --- what layers use --- */

struct sl_instance *sl_flow_instance(const struct sl_flow *f)
{
	return &((struct sl_runner *)f->edge->user)->inst;
}

struct sl_edge *sl_instance_next_edge(struct sl_instance *inst, unsigned service)
{
	struct sl_runner *r = sl_runner_of(inst);
	int next = service < SL_SERVICE_MAX ? inst->assignment.services[service].next_edge : -1;

	return next >= 0 && (unsigned)next < r->nb_edges ? r->edges[next] : NULL;
}

const void *sl_conf_find(const struct sl_control *c, enum sl_conf_type type, unsigned n, uint32_t *len)
{
	const uint8_t *conf = (const uint8_t *)c + c->conf_off;
	uint32_t at = 0, all = sl_min(c->conf_len, (uint32_t)SL_CONF_LEN);

	while (all - at >= sizeof(struct sl_conf_item)) {
		const struct sl_conf_item *item = (const void *)(conf + at);
		uint32_t room = all - at - (uint32_t)sizeof(*item);

		if (item->type == SL_CONF_END || item->length > room)
			break;
		if (item->type == (uint32_t)type && !n--) {
			*len = item->length;
			return item + 1;
		}
		at += (uint32_t)sizeof(*item) + sl_min((item->length + 7) & ~7u, room);
	}
	return NULL;
}

const void *sl_instance_conf(struct sl_instance *inst, enum sl_conf_type type, unsigned n, uint32_t *len)
{
	return sl_conf_find(sl_runner_of(inst)->control, type, n, len);
}

void sl_instance_conf_wipe(struct sl_instance *inst, const void *data, uint32_t len)
{
	struct sl_runner *r = sl_runner_of(inst);

	explicit_bzero((uint8_t *)r->control + ((const uint8_t *)data - (const uint8_t *)r->control), len);
}

int sl_instance_fail(struct sl_instance *inst, int err, const char *fmt, ...)
{
	struct sl_runner *r = sl_runner_of(inst);
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(r->error, sizeof(r->error), fmt, ap);
	va_end(ap);
	r->error_code = err;
	sl_log(&r->log, "error", "%s", r->error);
	return -err;
}

uint64_t sl_request_id(struct sl_instance *inst)
{
	struct sl_runner *r = sl_runner_of(inst);

	return (uint64_t)inst->vm_id << 48 | (++r->next_request & 0xffffffffffff);
}

void sl_trace_flow(const struct sl_flow *f, enum sl_trace_point point, uint64_t parent)
{
	struct sl_runner *r = f->edge->user;

	if (sl_likely(!f->traced))
		return;
	r->trace->events[r->trace_next & (SL_TRACE_CAP - 1)] = (struct sl_trace_event){
		.request_id = f->request_id, .parent_id = parent, .time_ns = sl_now_ns(), .vm_id = r->inst.vm_id,
		.layer = r->inst.layer->id, .point = (uint8_t)point, .peer_vm = f->peer_vm,
	};
	sl_publish_u32(&r->trace->next, ++r->trace_next);
}
