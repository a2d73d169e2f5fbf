/* SPDX-License-Identifier: Apache-2.0 */
#include "router/neigh.h"

void sl_neighs_init(struct sl_neighs *t, const struct sl_net *net, struct sl_port *nic, struct sl_count *count,
		    const uint8_t mac[6], const uint64_t seed[2])
{
	uint32_t i;

	memset(t, 0, sizeof(*t));
	t->net = net;
	t->nic = nic;
	t->count = count;
	memcpy(t->mac, mac, 6);
	memcpy(t->seed, seed, sizeof(t->seed));
	for (i = 0; i < SL_NEIGH_WAIT_MAX; i++) {
		t->wait[i].next = t->wait_free;
		t->wait_free = &t->wait[i];
	}
}

/* ---- frames out -------------------------------------------------------------------------------------------------- */

static bool nic_send(struct sl_neighs *t, uint8_t *data, uint32_t len)
{
	struct sl_frame f = { .seg = {{ data, len }}, .nb_seg = 1, .len = len };

	return t->nic->ops->tx_burst(t->nic, &f, 1) == 1;
}

static void tick_at(struct sl_neighs *t, uint64_t due_ns)
{
	if (!t->tick_ns || t->tick_ns > due_ns)
		t->tick_ns = due_ns;
}

/* Asks for e: everybody, or only the address that it had. */
static void ask(struct sl_neighs *t, struct sl_neigh *e, uint64_t now_ns)
{
	const uint8_t *to = e->state == SL_NEIGH_PROBING ? e->mac : NULL;
	uint8_t buf[SL_WIRE_MAX];
	uint32_t len = sl_wire_build_request(buf, t->mac, &e->tags, &e->vip, &e->addr, to);

	sl_count_add(t->count, nic_send(t, buf, len) ? SL_RTR_ASKED : SL_RTR_DROP_NIC_FULL, 1);
	e->tries++;
	e->retry_ns = now_ns + SL_NEIGH_RETRY_NS;
	tick_at(t, e->retry_ns);
}

static void answer(struct sl_neighs *t, const struct sl_wire_msg *msg)
{
	uint8_t buf[SL_WIRE_MAX];
	uint32_t len = sl_wire_build_reply(buf, t->mac, msg);

	sl_count_add(t->count, nic_send(t, buf, len) ? SL_RTR_ANSWERED : SL_RTR_DROP_NIC_FULL, 1);
}

uint8_t *sl_neigh_address(const struct sl_neighs *t, const struct sl_neigh *e, uint8_t *frame)
{
	uint8_t *start = frame - e->tags.len;

	memcpy(start, e->mac, 6);
	memcpy(start + 6, t->mac, 6);
	memcpy(start + 12, e->tags.b, e->tags.len);
	return start;
}

/* ---- waiting frames ---------------------------------------------------------------------------------------------- */

int sl_neighs_wait(struct sl_neighs *t, struct sl_neigh *e, const uint8_t *frame, uint32_t len, uint16_t vm_id)
{
	struct sl_neigh_wait *w = t->wait_free, **last = &e->wait;

	if (!w || e->nb_wait == SL_NEIGH_WAIT_EACH || len > SL_FRAME_MAX)
		return -ENOBUFS;
	t->wait_free = w->next;
	w->next = NULL;
	w->len = len;
	w->vm_id = vm_id;
	memcpy(w->data + SL_VLAN_MAX, frame, len);
	while (*last)
		last = &(*last)->next;
	*last = w;
	e->nb_wait++;
	return 0;
}

static void wait_release(struct sl_neighs *t, struct sl_neigh_wait *w)
{
	w->next = t->wait_free;
	t->wait_free = w;
}

static void waiting_drop(struct sl_neighs *t, struct sl_neigh *e)
{
	struct sl_neigh_wait *w, *next;

	for (w = e->wait; w; w = next) {
		next = w->next;
		sl_count_add(t->count, SL_RTR_DROP_UNRESOLVED, 1);
		sl_count_port(t->count, w->vm_id)->out_dropped++;
		wait_release(t, w);
	}
	e->wait = NULL;
	e->nb_wait = 0;
}

static void waiting_send(struct sl_neighs *t, struct sl_neigh *e)
{
	struct sl_neigh_wait *w, *next;

	for (w = e->wait; w; w = next) {
		struct sl_rtr_port *port = sl_count_port(t->count, w->vm_id);
		uint8_t *start = sl_neigh_address(t, e, w->data + SL_VLAN_MAX);

		next = w->next;
		if (nic_send(t, start, w->len + e->tags.len)) {
			sl_count_add(t->count, SL_RTR_OUT_SENT, 1);
			port->out_packets++;
			port->out_bytes += w->len;
		} else {
			sl_count_add(t->count, SL_RTR_DROP_NIC_FULL, 1);
			port->out_dropped++;
		}
		wait_release(t, w);
	}
	e->wait = NULL;
	e->nb_wait = 0;
}

/* ---- the table --------------------------------------------------------------------------------------------------- */

/* The only place that changes a state: keeps the numbers of entries by state right. */
static void state_set(struct sl_neighs *t, struct sl_neigh *e, enum sl_neigh_state state)
{
	t->nb_used += (state != SL_NEIGH_FREE) - (e->state != SL_NEIGH_FREE);
	t->nb_asking += (state == SL_NEIGH_ASKING) - (e->state == SL_NEIGH_ASKING);
	e->state = (uint8_t)state;
	e->tries = 0;
}

static void entry_free(struct sl_neighs *t, struct sl_neigh *e)
{
	waiting_drop(t, e);
	state_set(t, e, SL_NEIGH_FREE);
}

static struct sl_neigh *bucket_of(struct sl_neighs *t, const struct sl_addr *a)
{
	uint64_t half[2];
	unsigned __int128 m;

	memcpy(half, a, sizeof(half));
	m = (unsigned __int128)(half[0] ^ t->seed[0]) * (half[1] ^ t->seed[1]);
	return &t->neigh[((uint64_t)m ^ (uint64_t)(m >> 64)) % (SL_NEIGH_CAP / SL_NEIGH_WAYS) * SL_NEIGH_WAYS];
}

static struct sl_neigh *entry_find(struct sl_neighs *t, const struct sl_addr *a)
{
	struct sl_neigh *e = bucket_of(t, a), *end = e + SL_NEIGH_WAYS;

	for (; e < end; e++)
		if (e->state != SL_NEIGH_FREE && sl_addr_equal(&e->addr, a))
			return e;
	return NULL;
}

/* Whether a has to make room before b. */
static bool goes_before(const struct sl_neigh *a, const struct sl_neigh *b)
{
	if (!a->used_ns != !b->used_ns)
		return !a->used_ns;
	return a->used_ns ? a->used_ns < b->used_ns : a->alive_ns < b->alive_ns;
}

/* A new entry for a, ASKING; NULL: its bucket holds gateways only. */
static struct sl_neigh *entry_make(struct sl_neighs *t, const struct sl_addr *a, uint64_t now_ns)
{
	struct sl_neigh *e = bucket_of(t, a), *end = e + SL_NEIGH_WAYS, *victim = NULL;

	for (; e < end && (!victim || victim->state != SL_NEIGH_FREE); e++)
		if (e->state == SL_NEIGH_FREE ||
		    (!sl_net_is_gateway(t->net, &e->addr) && (!victim || goes_before(e, victim))))
			victim = e;
	if (!victim)
		return NULL;
	if (victim->state != SL_NEIGH_FREE) {
		sl_count_add(t->count, SL_RTR_NEIGH_EVICTED, 1);
		entry_free(t, victim);
	}
	*victim = (struct sl_neigh){ .addr = *a, .alive_ns = now_ns };
	state_set(t, victim, SL_NEIGH_ASKING);
	tick_at(t, now_ns + SL_NEIGH_SWEEP_NS);
	return victim;
}

struct sl_neigh *sl_neighs_use(struct sl_neighs *t, const struct sl_addr *hop, const struct sl_addr *vip,
			       uint64_t now_ns)
{
	struct sl_neigh *e = entry_find(t, hop);

	if (!e) {
		if (t->nb_asking == SL_NEIGH_ASKING_MAX)
			return NULL;
		e = entry_make(t, hop, now_ns);
		if (!e)
			return NULL;
		e->vip = *vip;
		ask(t, e, now_ns);
		return e;
	}
	if (e->state != SL_NEIGH_ASKING)
		e->used_ns = now_ns;
	if (e->state == SL_NEIGH_KNOWN && now_ns - e->alive_ns > SL_NEIGH_FRESH_NS) {
		e->vip = *vip;
		state_set(t, e, SL_NEIGH_PROBING);
		ask(t, e, now_ns);
	}
	return e;
}

/* ---- messages in ------------------------------------------------------------------------------------------------- */

static void entry_confirm(struct sl_neighs *t, struct sl_neigh *e, const struct sl_wire_msg *msg, uint64_t now_ns)
{
	if (e->state == SL_NEIGH_ASKING)
		sl_count_add(t->count, SL_RTR_NEIGH_LEARNT, 1);
	if (msg->has_mac)
		memcpy(e->mac, msg->mac, 6);
	if (e->nb_wait)
		e->used_ns = now_ns;
	e->tags = msg->tags;
	e->alive_ns = now_ns;
	state_set(t, e, SL_NEIGH_KNOWN);
	waiting_send(t, e);
}

/* An answer: counts only for who was asked. RFC 4861 section 7.2.5. */
static int reply_input(struct sl_neighs *t, const struct sl_wire_msg *msg, uint64_t now_ns)
{
	struct sl_neigh *e = entry_find(t, &msg->about);
	bool is_other = e && msg->has_mac && memcmp(e->mac, msg->mac, 6);

	if (!e || e->state == SL_NEIGH_KNOWN)
		return -EPERM;
	if (e->state == SL_NEIGH_ASKING ? !msg->has_mac : !msg->solicited || (is_other && !msg->is_override))
		return -EPERM;
	entry_confirm(t, e, msg, now_ns);
	return 0;
}

static int request_input(struct sl_neighs *t, const struct sl_wire_msg *msg, uint64_t now_ns)
{
	struct sl_neigh *e;

	answer(t, msg);
	if (!msg->has_mac || !sl_net_is_neighbour(t->net, &msg->about))
		return 0;
	e = entry_find(t, &msg->about);
	if (!e)
		e = entry_make(t, &msg->about, now_ns);
	if (e)
		entry_confirm(t, e, msg, now_ns);
	return 0;
}

int sl_neighs_input(struct sl_neighs *t, const struct sl_wire_msg *msg, uint64_t now_ns)
{
	/* somebody else claims one of our addresses, or it is not about us: no word */
	if (!sl_net_is_vip(t->net, &msg->target, ~0ull) || sl_net_is_vip(t->net, &msg->about, ~0ull))
		return -EPERM;
	return msg->is_reply ? reply_input(t, msg, now_ns) : request_input(t, msg, now_ns);
}

/* ---- time -------------------------------------------------------------------------------------------------------- */

static void entry_tick(struct sl_neighs *t, struct sl_neigh *e, uint64_t now_ns)
{
	if (e->state == SL_NEIGH_KNOWN) {
		if (now_ns - e->alive_ns > SL_NEIGH_IDLE_NS && now_ns - e->used_ns > SL_NEIGH_IDLE_NS)
			entry_free(t, e);
		return;
	}
	if (e->retry_ns > now_ns) {
		tick_at(t, e->retry_ns);
	} else if (e->tries < SL_NEIGH_TRIES) {
		ask(t, e, now_ns);
	} else {
		sl_count_add(t->count, SL_RTR_NEIGH_LOST, 1);
		entry_free(t, e);
	}
}

void sl_neighs_tick(struct sl_neighs *t, uint64_t now_ns)
{
	struct sl_neigh *e;

	t->tick_ns = 0;
	for (e = t->neigh; e < t->neigh + SL_NEIGH_CAP && t->nb_used; e++)
		if (e->state != SL_NEIGH_FREE)
			entry_tick(t, e, now_ns);
	if (t->nb_used)
		tick_at(t, now_ns + SL_NEIGH_SWEEP_NS);
}

