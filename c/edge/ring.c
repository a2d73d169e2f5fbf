/* SPDX-License-Identifier: Apache-2.0 */
/* Rings, completions and payload slots: the fast path. No allocation, no system call but the doorbell. */
#include <unistd.h>

#include "base/atomic.h"
#include "base/base.h"
#include "base/cache.h"
#include "base/fault.h"
#include "edge/entry.h"

/* --- slots of the own arena --- */

int sl_buf_alloc(struct sl_edge *e, uint32_t len, struct sl_buf *buf)
{
	bool small = (len <= e->g.small_len && e->nb_free_small) || !e->nb_free_big;

	if (small && !e->nb_free_small) {
		e->ops->count(e, SL_CNT_ARENA_EMPTY);
		return -EAGAIN;
	}
	if (small) {
		buf->offset = e->arena_off + e->free_small[--e->nb_free_small] * e->g.small_len;
		buf->cap = e->g.small_len;
	} else {
		buf->offset = e->arena_off + e->g.nb_small * e->g.small_len + e->free_big[--e->nb_free_big] * e->g.big_len;
		buf->cap = e->g.big_len;
	}
	buf->data = e->base + buf->offset;
	return 0;
}

void sl_buf_free(struct sl_edge *e, struct sl_buf *buf)
{
	uint32_t off = buf->offset - e->arena_off, small = e->g.nb_small * e->g.small_len;

	if (off < small)
		e->free_small[e->nb_free_small++] = (uint16_t)(off / e->g.small_len);
	else
		e->free_big[e->nb_free_big++] = (uint16_t)((off - small) / e->g.big_len);
}

/* --- sending --- */

/* The receiver has read these lines a round ago: asks for them back before they are written. After a burst comes a burst:
 * as many lines as were sent just now. A single entry is somebody's question, and the receiver polls for the next one in
 * that very line. */
static void next_lines_claim(const struct sl_link *l, uint32_t sent)
{
	uint32_t nb = sl_min(sent, sl_link_room(l)), mask = l->edge->g.ring_cap - 1;

	for (uint32_t i = 0; i + 1 < nb; i += SL_CACHELINE / sizeof(*l->tx.entries))
		sl_line_own(&l->tx.entries[(l->tx.prod + i) & mask]);
}

uint32_t sl_route_burst(struct sl_link *l, const struct sl_request_packet *p, const struct sl_buf *bufs, uint32_t nb)
{
	const uint64_t keep1 = SL_BITS(length, ~0u), keep2 = SL_BITS(flow_id, ~0u) | SL_BITS(status, 0xffff);
	const uint64_t keep3 = SL_BITS(flags, 0xff) | SL_BITS(op, 0xff);
	const uint64_t put2 = SL_BITS(next_vm_id, l->vm_id);
	const uint64_t put3 = SL_BITS(epoch, l->edge->incarnation) | SL_BITS(protocol_layer, l->edge->peer_layer);
	uint32_t cap = l->edge->g.ring_cap, prod = l->tx.prod, n = sl_min(nb, sl_link_room(l)), *sent = l->tx.sent;

	for (uint32_t i = 0; i < n; i++) {
		const struct sl_entry *from = (const void *)&p[i];
		struct sl_entry *entry = sl_entry_at(l->tx.entries, cap, prod + i);
		uint32_t off = bufs ? bufs[i].offset : 0;
		/* the receiver sees nothing of what lies behind the first, so only that one's last word is held back */
		__u64 *last = prod + i == l->tx.published ? &l->tx.head : &entry->w[SL_ENTRY_LAST];

		entry->w[0] = from->w[0];
		entry->w[1] = (from->w[1] & keep1) | off;
		entry->w[2] = (from->w[2] & keep2) | put2;
		*last = (from->w[SL_ENTRY_LAST] & keep3) | put3 | SL_BITS(lap, sl_lap(cap, prod + i));
		sent[(prod + i) & (cap - 1)] = off | SL_SENT_OPEN;
	}
	SL_FAULT("send: entries written");
	l->tx.prod = prod + n;
	if (sl_unlikely(n < nb))
		l->edge->ops->count(l->edge, SL_CNT_RING_FULL);
	return n;
}

int sl_route_request(struct sl_link *l, const struct sl_request_packet *p, const struct sl_buf *buf, uint32_t *seq)
{
	if (seq)
		*seq = l->tx.prod;
	return sl_route_burst(l, p, buf, 1) ? 0 : -EAGAIN;
}

static void run_flush(struct sl_link *l)
{
	struct sl_rx *rx = &l->rx;
	uint32_t cap = l->edge->g.ring_cap;
	__u64 word;

	if (!rx->run.count)
		return;
	SL_FAULT("complete: gathered");
	rx->run.lap = (__u8)sl_lap(cap, rx->cprod);
	memcpy(&word, &rx->run, sizeof(word));
	/* the sender may reuse the slots at once: all our reads of them must be done before it sees this */
	sl_publish_u64(sl_completion_at(rx->completions, cap, rx->cprod), word);
	SL_FAULT("complete: published");
	rx->cprod++;
	rx->run.count = 0;
}

void sl_link_complete(struct sl_link *l, uint32_t seq, uint32_t count, enum sl_request_status status)
{
	struct sl_completion *run = &l->rx.run;

	if (run->count && (run->seq + run->count != seq || run->status != status || run->count + count > l->edge->g.ring_cap))
		run_flush(l);
	if (!run->count)
		*run = (struct sl_completion){.seq = seq, .status = (uint8_t)status};
	run->count = (uint16_t)(run->count + count);
}

/* Makes visible what was written since; says what the peer may want to be woken for. Entries first: they are waited
 * for. */
static uint32_t link_publish(struct sl_link *l)
{
	struct sl_tx *tx = &l->tx;
	uint32_t news = 0;

	if (tx->published != tx->prod) {
		sl_post_u32(&tx->ring->prod, tx->prod);
		/* the receiver must see the entries and their payload before it sees the first one's last word, or it
		 * reads the last lap's */
		sl_publish_u64(&sl_entry_at(tx->entries, l->edge->g.ring_cap, tx->published)->w[SL_ENTRY_LAST], tx->head);
		next_lines_claim(l, tx->prod - tx->published);
		tx->published = tx->prod;
		SL_FAULT("send: published");
		news |= SL_SLEEP_ENTRIES;
	}
	run_flush(l);
	if (l->rx.cprod != l->rx.ctold) {
		l->rx.ctold = l->rx.cprod;
		news |= SL_SLEEP_COMPLETIONS;
	}
	return news;
}

bool sl_link_ring(const struct sl_link *l)
{
	uint64_t one = 1;

	if (l->edge->ops->ring)
		return l->edge->ops->ring(l->edge, l->vm_id);
	/* a full counter (EAGAIN) means that it has been rung already */
	return write(l->doorbell, &one, sizeof(one)) == sizeof(one);
}

uint32_t sl_signal_vm(struct sl_edge *e)
{
	uint32_t rung = 0, news[SL_SIDE_MAX], any = 0;

	for (unsigned i = 0; i < e->nb_up; i++)
		any |= news[i] = link_publish(e->up[i]);
	if (!any)
		return 0;
	/* publish, then look whether the receiver sleeps: the mirror of sl_edge_sleep_set. One fence for all links. */
	sl_full_fence();
	SL_FAULT("signal: before doorbells");
	for (unsigned i = 0; i < e->nb_up; i++) {
		const struct sl_link *l = e->up[i];

		if (!(news[i] & sl_peek_u32(&l->peer->sleeping)) || l->doorbell < 0)
			continue;
		if (sl_link_ring(l))
			rung++;
		SL_FAULT("signal: doorbell rung");
		e->ops->count(e, SL_CNT_DOORBELLS);
	}
	return rung;
}

/* --- receiving --- */

/* Whether a ring's other half is set up for this pairing. Until then, what lies in it is a former pairing's; from then
 * on it says itself whose it is, and the pair is not looked at again. */
static inline bool is_up(bool *up, const __u64 *pair, uint32_t sender, uint32_t receiver)
{
	if (sl_unlikely(!*up))
		*up = sl_observe_u64(pair) == ((uint64_t)sender << 32 | receiver);
	return *up;
}

static inline bool rx_is_up(struct sl_link *l)
{
	return is_up(&l->rx.up, &l->rx.ring->prod_pair, l->incarnation, l->edge->incarnation);
}

static inline bool tx_is_up(struct sl_link *l)
{
	return is_up(&l->tx.up, &l->tx.ring->cons_pair, l->edge->incarnation, l->incarnation);
}

/* What the last word of entry n says when it is there: whose it is, and of which lap. */
static inline uint64_t there(uint32_t incarnation, uint32_t cap, uint32_t n)
{
	return SL_BITS(epoch, incarnation) | SL_BITS(lap, sl_lap(cap, n));
}

static const uint64_t there_bits = SL_BITS(epoch, ~0u) | SL_BITS(lap, 0xff);

bool sl_link_has_entries(struct sl_link *l)
{
	uint32_t cap = l->edge->g.ring_cap, cons = l->rx.cons;

	return rx_is_up(l) && (sl_observe_u64(&sl_entry_at(l->rx.entries, cap, cons)->w[SL_ENTRY_LAST]) & there_bits) ==
				      there(l->incarnation, cap, cons);
}

uint32_t sl_link_waiting(const struct sl_link *l)
{
	uint32_t nb = sl_peek_u32(&l->rx.ring->prod) - l->rx.cons;

	return nb <= l->edge->g.ring_cap ? nb : 0;   /* a lie, or of another pairing */
}

/* In the place of entry n lies something else. An honest sender leaves nothing there, or what was there in the last
 * lap. */
static void absent_check(struct sl_link *l, uint32_t n, uint64_t last)
{
	uint64_t lap = sl_lap(l->edge->g.ring_cap, n), found = (last & SL_BITS(lap, 0xff)) / SL_BITS(lap, 1);

	if (sl_likely(!found || found == 3 - lap))
		return;
	/* a new owner of the slot may have begun just now; its link comes with the next route page */
	l->rx.up = false;
	if (rx_is_up(l))
		sl_link_quarantine(l, found == lap ? SL_CNT_STALE_EPOCH : SL_CNT_BAD_INDEX);
}

/* Takes out what is there. */
static uint32_t entries_copy(struct sl_link *l, struct sl_request_packet *p, uint32_t max)
{
	const struct sl_request_packet *entries = l->rx.entries;
	uint32_t cap = l->edge->g.ring_cap, cons = l->rx.cons, incarnation = l->incarnation, nb;

	for (nb = 0; nb < max; nb++) {
		const struct sl_entry *from = sl_entry_at(entries, cap, cons + nb);
		struct sl_entry *to = (void *)&p[nb];
		/* the last word first: what was written before it is there, too */
		uint64_t last = sl_observe_u64(&from->w[SL_ENTRY_LAST]);

		if ((last & there_bits) != there(incarnation, cap, cons + nb)) {
			absent_check(l, cons + nb, last);
			break;
		}
		sl_copy_once((struct sl_entry_body *)to, (const struct sl_entry_body *)from);
		to->w[SL_ENTRY_LAST] = last;
	}
	sl_copied_once();
	/* a whole burst was there, so there is more: it comes here while this one is worked on */
	for (uint32_t i = nb; nb == SL_BURST && i < 2 * SL_BURST; i += SL_CACHELINE / sizeof(*p))
		__builtin_prefetch(sl_entry_at(entries, cap, cons + i));
	return nb;
}

uint32_t sl_link_recv(struct sl_link *l, struct sl_request_packet *p, uint32_t max, uint32_t *seq)
{
	enum sl_counter why;
	uint32_t nb, good;

	if (sl_unlikely(l->quarantined || !l->incarnation || !rx_is_up(l)))
		return 0;
	nb = entries_copy(l, p, max);
	if (!nb)
		return 0;
	SL_FAULT("receive: copied");
	*seq = l->rx.cons;
	l->rx.cons += nb;
	/* who looks at cons after our death must not take an entry for pending whose work we had begun */
	sl_publish_u32(&l->rx.ring->cons, l->rx.cons);
	SL_FAULT("receive: taken");
	good = sl_entries_check(l, p, nb, &why);
	if (sl_unlikely(good < nb))
		sl_link_quarantine(l, why);   /* nothing behind it can be trusted either */
	return good;
}

/* --- completions --- */

static bool completion_apply(struct sl_link *l, const struct sl_completion *c)
{
	struct sl_edge *e = l->edge;
	uint32_t mask = e->g.ring_cap - 1, window = l->tx.published - l->tx.oldest, first = c->seq - l->tx.oldest;

	if (!c->count || first >= window || c->count > window - first || c->status < SL_COMPLETED || c->status > SL_ERROR_CLIENT)
		return false;
	for (uint32_t i = 0; i < c->count; i++) {
		uint32_t *sent = &l->tx.sent[(c->seq + i) & mask];
		struct sl_buf buf = {.offset = *sent & ~(uint32_t)SL_SENT_OPEN};

		if (sl_unlikely(!*sent))
			return false;
		*sent = 0;
		if (buf.offset)
			sl_buf_free(e, &buf);
	}
	if (!first)
		l->tx.oldest += c->count;
	return true;
}

/* The next completion, if it is there. */
static bool completion_read(const struct sl_link *l, struct sl_completion *c)
{
	uint32_t cap = l->edge->g.ring_cap;
	__u64 word = sl_observe_u64(sl_completion_at(l->tx.completions, cap, l->tx.cprod));

	memcpy(c, &word, sizeof(*c));
	return c->lap == sl_lap(cap, l->tx.cprod);
}

bool sl_link_has_completions(struct sl_link *l)
{
	struct sl_completion c;

	return tx_is_up(l) && completion_read(l, &c);
}

uint32_t sl_link_reap(struct sl_link *l)
{
	uint32_t before = l->tx.oldest, mask = l->edge->g.ring_cap - 1;
	struct sl_completion c;

	if (sl_unlikely(l->quarantined || !l->incarnation || !tx_is_up(l)))
		return 0;
	for (; completion_read(l, &c); l->tx.cprod++) {
		if (!completion_apply(l, &c)) {
			sl_link_quarantine(l, SL_CNT_BAD_COMPLETION);
			break;
		}
	}
	while (l->tx.oldest != l->tx.published && !l->tx.sent[l->tx.oldest & mask])
		l->tx.oldest++;
	SL_FAULT("reap: slots back");
	return l->tx.oldest - before;
}
