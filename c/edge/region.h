/* SPDX-License-Identifier: Apache-2.0 */
/* Making and checking a region: for the manager, for each instance that attaches, and for every test that plays one.
 * Read by cffi too, so: declarations only. */
#ifndef SL_EDGE_REGION_H
#define SL_EDGE_REGION_H

#include "abi/edge.h"

/* Fills all offsets and lengths of *g from its counts, lengths of slots and page_len (2 MiB or 4096: region_len is a
 * multiple of it), by the formula in abi/edge.h. Counts and lengths that are 0 get their defaults; magic and versions
 * are set. Returns 0, -EINVAL for a count out of range, -EFBIG for 4 GiB and more. */
int sl_region_plan(struct sl_region *g, __u64 page_len);

/* Writes the header of a planned region into zeroed memory of g->region_len bytes, magic last. */
void sl_region_format(void *base, const struct sl_region *g);

/* Copies the header at base once into *g and refuses it unless each offset is what the formula gives and everything
 * fits into map_len bytes. Returns 0, -EAGAIN if the magic is not there (yet), -EPROTO if it is another ABI version,
 * -EINVAL. */
int sl_region_check(const void *base, __u64 map_len, struct sl_region *g);

/* Memory order for a peer that is not written in C: see base/atomic.h. */
__u32 sl_load_acquire_u32(const __u32 *p);
void sl_store_release_u32(__u32 *p, __u32 v);
void sl_fence(void);

#endif
