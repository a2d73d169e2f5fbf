/* SPDX-License-Identifier: Apache-2.0 */
#include "base/wipe.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>

enum {
	STACK_LEN = 256 << 10,    /* more than any callback of a layer has used */
	CACHED_MAX = 1032,        /* largest request that the allocator's cache of the thread serves (tcache), in steps of 16 */
	CACHED_NB = 7,            /* how many it keeps of each size */
	SMALL = 24,               /* what the smallest piece holds; it takes PIECE bytes of the heap */
	PIECE = 32,
};

/* Chains what was allocated, so that all of it is held before any is freed. */
struct held {
	struct held *next;
};

static void hold(struct held **list, size_t len)
{
	struct held *h = malloc(len);

	if (!h)
		return;
	__asm__("" : "+r"(h));   /* it may have got more than it asked for, which the compiler would take for an overflow */
	explicit_bzero(h, malloc_usable_size(h));
	h->next = *list;
	*list = h;
}

static void release(struct held *list)
{
	while (list) {
		struct held *next = list->next;

		free(list);
		list = next;
	}
}

/* Whole pages go back to the kernel. What lies between pieces in use is allocated in the smallest pieces, which fit
 * everywhere, and overwritten. */
static void heap_wipe(void)
{
	struct held *list = NULL;
	struct mallinfo2 m;

	for (size_t len = SMALL; len <= CACHED_MAX; len += 16)
		for (int i = 0; i < CACHED_NB; i++)
			hold(&list, len);
	malloc_trim(0);
	m = mallinfo2();
	for (size_t rest = (m.fordblks - m.keepcost) / PIECE; rest > 0; rest--)
		hold(&list, SMALL);
	release(list);
	malloc_trim(0);
}

static __attribute__((noinline)) void stack_wipe(void)
{
	char below[STACK_LEN];

	explicit_bzero(below, sizeof(below));
}

void sl_memory_wipe(void)
{
	heap_wipe();
	stack_wipe();
}
