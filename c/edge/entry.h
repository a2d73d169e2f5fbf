/* SPDX-License-Identifier: Apache-2.0 */
/* An entry as four words: filled in, published and checked without a branch for each field. They are little endian. */
#ifndef SL_EDGE_ENTRY_H
#define SL_EDGE_ENTRY_H

#include <stddef.h>

#include "edge/edge.h"

/* the last word is stored last, and says that the entry is there */
enum { SL_ENTRY_WORDS = sizeof(struct sl_request_packet) / 8, SL_ENTRY_LAST = SL_ENTRY_WORDS - 1 };

struct sl_entry {
	__u64 w[SL_ENTRY_WORDS];
} __attribute__((may_alias));

/* An entry without its last word */
struct sl_entry_body {
	__u64 w[SL_ENTRY_LAST];
} __attribute__((may_alias));

/* Value v of a field, in the word where it lies */
#define SL_BITS(field, v) ((uint64_t)(v) << 8 * (offsetof(struct sl_request_packet, field) % 8))

_Static_assert(offsetof(struct sl_request_packet, epoch) == 8 * SL_ENTRY_LAST, "epoch and lap are stored at once, last");

/* The lap of entry or completion number n of a ring of cap: never that of what lay in its place before. */
static inline uint64_t sl_lap(uint32_t cap, uint32_t n)
{
	return n & cap ? 2 : 1;
}

static inline struct sl_entry *sl_entry_at(const struct sl_request_packet *entries, uint32_t cap, uint32_t n)
{
	return (struct sl_entry *)(void *)(uintptr_t)&entries[n & (cap - 1)];
}

static inline __u64 *sl_completion_at(const struct sl_completion *completions, uint32_t cap, uint32_t n)
{
	return (__u64 *)(void *)(uintptr_t)&completions[n & (cap - 1)];
}

/* check.c: how many of nb entries of l's peer, private copies, are good, from the first on; *why says what is wrong
 * with the next. */
uint32_t sl_entries_check(const struct sl_link *l, const struct sl_request_packet *p, uint32_t nb,
			  enum sl_counter *why);

#endif
