/* SPDX-License-Identifier: Apache-2.0 */
/* Memory order, named once. All shared words are naturally aligned __u32 or __u64 of the ABI.
 *
 *   publish   store-release: what was written before is visible to whoever observes this value. Without it an entry is
 *             there before its payload is, and a slot is free before its last reader is done
 *   observe   load-acquire:  what was written before the observed publish is visible after this load. Without it the
 *             rest of an entry that is there may be the last lap's
 *   peek      relaxed load:  one single read of a word whose neighbours do not matter (hints, own words)
 *   post      relaxed store: hints
 *   fence     full barrier between a store and a later load of another word: the only order that release and acquire do
 *             not give. Without it a sender looks whether its receiver sleeps before its entry can be seen, the receiver
 *             looks for entries before its wish to be rung can be seen, and it sleeps for ever */
#ifndef SL_ATOMIC_H
#define SL_ATOMIC_H

#include <linux/types.h>

/* Each read of a word that a peer may write goes through observe, peek or sl_copy_once. A build with SL_COUNT_READS tells the test that
 * defines sl_read_note() about every one of them. */
#ifdef SL_COUNT_READS
void sl_read_note(const void *p, __u32 len) __attribute__((weak));
#define SL_READ_NOTE(p, len) (sl_read_note ? sl_read_note(p, len) : (void)0)
#else
#define SL_READ_NOTE(p, len) ((void)0)
#endif

static inline void sl_publish_u32(__u32 *p, __u32 v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void sl_publish_u64(__u64 *p, __u64 v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline __u32 sl_observe_u32(const __u32 *p) { SL_READ_NOTE(p, 4); return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline __u64 sl_observe_u64(const __u64 *p) { SL_READ_NOTE(p, 8); return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline __u32 sl_peek_u32(const __u32 *p) { SL_READ_NOTE(p, 4); return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline __u64 sl_peek_u64(const __u64 *p) { SL_READ_NOTE(p, 8); return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void sl_post_u32(__u32 *p, __u32 v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void sl_post_u64(__u64 *p, __u64 v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }
static inline void sl_full_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

/* Takes one record of a peer's out of shared memory. sl_copied_once() must follow before anything is decided by the copy. */
#define sl_copy_once(to, from) do { SL_READ_NOTE(from, sizeof(*(to))); *(to) = *(from); } while (0)

/* After copying hostile memory into a private struct: keeps the compiler from reading the source again in place of the copy. */
static inline void sl_copied_once(void) { __asm__ volatile("" ::: "memory"); }

/* Tells the core that this is a spin loop. */
static inline void sl_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("yield");
#endif
}

#endif
