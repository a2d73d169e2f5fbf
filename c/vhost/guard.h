/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that a file of somebody hostile backs, and that may go away under its user: a hole punched into a file of huge
 * pages, when none is left to fill it; a failing memory module. Touching it would end this process by SIGBUS. A guarded
 * mapping becomes private zeroes instead, as a whole, and says that it was lost.
 *
 * One thread. The list of mappings is the one thing here that is global: a signal handler has no argument. */
#ifndef SL_VHOST_GUARD_H
#define SL_VHOST_GUARD_H

#include "base/base.h"

struct sl_guard {
	struct sl_guard *next;
	void *map;
	size_t len;                       /* both as mmap got them */
	volatile bool lost;
};

/* Takes SIGBUS. Once per process, before the first mapping. 0 or -errno. */
int sl_guard_install(void);

/* Guards a mapping until sl_guard_drop, which comes before munmap. */
void sl_guard_add(struct sl_guard *g);
void sl_guard_drop(struct sl_guard *g);

#endif
