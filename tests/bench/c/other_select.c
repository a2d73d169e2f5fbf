/* SPDX-License-Identifier: Apache-2.0 */
/* An instance that picks the receivers of new flows as others do, to compare with select_best_vm. POLICY:
 *   1 round robin
 *   2 random
 *   3 ideal: knows what nobody tells a real one, that the receiver with the highest VMID has a quarter of the power of
 *     each other, and deals exactly so
 * The linker takes these definitions instead of those of the edge library. */
#include "edge/edge.h"

struct sl_link *ours(struct sl_edge *e);
#define sl_select_best_vm ours
#include "edge/route.c"
#undef sl_select_best_vm

enum { SLOWER = 4 };

#if POLICY == 3
static bool highest(const struct sl_alias *a, uint32_t i)
{
	for (uint32_t k = 0; k < a->nb; k++)
		if (a->link[k]->vm_id > a->link[i]->vm_id)
			return false;
	return true;
}
#endif

struct sl_link *sl_select_best_vm(struct sl_edge *e)
{
	struct sl_alias *a = &e->alias;
	static uint32_t turn;

	(void)ours;
	if (a->nb < 2)
		return a->nb ? a->link[0] : NULL;
#if POLICY == 1
	return a->link[turn++ % a->nb];
#elif POLICY == 2
	(void)turn;
	return a->link[(draw(e) >> 32) % a->nb];
#else
	/* the slow one has one turn in SLOWER rounds of the others */
	for (;;) {
		uint32_t i = turn % a->nb, round = turn / a->nb % SLOWER;

		turn++;
		if (!highest(a, i) || !round)
			return a->link[i];
	}
#endif
}
