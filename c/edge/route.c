/* SPDX-License-Identifier: Apache-2.0 */
#include "edge/route.h"

#include "base/atomic.h"
#include "base/base.h"
#include "edge/edge.h"

/* Vose: pair each entry that is lighter than the average with a heavier one that fills it up. Sums are kept in units of
 * weight * nb, so the arithmetic is exact until the last division. */
static void alias_fill(struct sl_alias *a, uint64_t *scaled, uint64_t total)
{
	uint8_t light[SL_SIDE_MAX], heavy[SL_SIDE_MAX];
	unsigned nb_light = 0, nb_heavy = 0;

	for (unsigned i = 0; i < a->nb; i++) {
		a->alias[i] = (uint8_t)i;
		a->cut[i] = UINT32_MAX;
		if (scaled[i] < total)
			light[nb_light++] = (uint8_t)i;
		else
			heavy[nb_heavy++] = (uint8_t)i;
	}
	while (nb_light && nb_heavy) {
		unsigned s = light[--nb_light], b = heavy[nb_heavy - 1];

		a->cut[s] = (uint32_t)((scaled[s] << 32) / total);
		a->alias[s] = (uint8_t)b;
		scaled[b] -= total - scaled[s];
		if (scaled[b] < total) {
			nb_heavy--;
			light[nb_light++] = (uint8_t)b;
		}
	}
}

void sl_alias_build(struct sl_edge *e)
{
	struct sl_alias *a = &e->alias;
	uint64_t scaled[SL_SIDE_MAX], total = 0;

	a->nb = 0;
	for (unsigned i = 0; i < e->nb_up; i++) {
		struct sl_link *l = e->up[i];

		if (l->state != SL_VM_ACTIVE || !l->weight || l->quarantined)
			continue;
		scaled[a->nb] = l->weight;
		total += l->weight;
		a->link[a->nb++] = l;
	}
	for (unsigned i = 0; i < a->nb; i++)
		scaled[i] *= a->nb;
	alias_fill(a, scaled, total);
}

/* xorshift64*: enough to spread load; nobody's secret depends on it */
static uint64_t draw(struct sl_edge *e)
{
	uint64_t x = e->rng;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	e->rng = x;
	return x * 0x2545f4914f6cdd1du;
}

/* Index of the one drawn. */
static uint32_t alias_draw(const struct sl_alias *a, uint64_t r)
{
	uint32_t i = (uint32_t)(((r >> 32) * a->nb) >> 32);

	return (uint32_t)r <= a->cut[i] ? i : a->alias[i];
}

/* What the receiver says of itself, and what we know that it holds of ours. */
static uint64_t depth(const struct sl_link *l)
{
	return (uint64_t)sl_peek_u32(&l->peer->depth) + (l->tx.prod - l->tx.oldest);
}

/* Two different ones, or one that is stuck would go on getting what is drawn twice. Depth counts by weight: who has four
 * times the power may have four times as much. Equals: the first, so by weight again. */
struct sl_link *sl_select_best_vm(struct sl_edge *e)
{
	const struct sl_alias *all = &e->alias;
	const struct sl_link *a, *b;
	uint32_t i, k, next;

	if (all->nb < 2)
		return all->nb ? all->link[0] : NULL;
	i = alias_draw(all, draw(e));
	k = alias_draw(all, draw(e));
	next = i + 1 < all->nb ? i + 1 : 0;
	k = k == i ? next : k;   /* a choice of values: as a branch it is mispredicted every other time if there are two */
	a = all->link[i];
	b = all->link[k];
	return all->link[depth(b) * a->weight < depth(a) * b->weight ? k : i];
}
