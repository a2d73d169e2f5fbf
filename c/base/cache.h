/* SPDX-License-Identifier: Apache-2.0 */
/* Hints about lines of the caches between two cores that share memory. They change nothing but the time that it takes; a
 * core that does not know one ignores it. */
#ifndef SL_CACHE_H
#define SL_CACHE_H

/* The line will be written here. Without it each store waits in turn for its line to come from the other core. */
static inline void sl_line_own(const void *line)
{
#if defined(__x86_64__)
	/* the builtin would only ask to read on the baseline */
	__asm__ volatile("prefetchw %0" : : "m"(*(const char *)line));
#else
	__builtin_prefetch(line, 1);
#endif
}

/* The other core will want the line next: it goes half of the way. */
static inline void sl_line_give(const void *line)
{
#if defined(__x86_64__)
	__asm__ volatile("cldemote %0" : : "m"(*(const char *)line));
#else
	(void)line;
#endif
}

#endif
