/* SPDX-License-Identifier: Apache-2.0 */
/* Single reads and writes of words in guest memory, 16 bits unless named otherwise; named as in base/atomic.h. */
#ifndef SL_VHOST_GUEST_H
#define SL_VHOST_GUEST_H

#include "base/atomic.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "virtio 1 is little endian, and so are these accesses");

static inline __u16 sl_guest_observe(const __u16 *p) { SL_READ_NOTE(p, 2); return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline __u16 sl_guest_peek(const __u16 *p) { SL_READ_NOTE(p, 2); return __atomic_load_n(p, __ATOMIC_RELAXED); }
static inline void sl_guest_publish(__u16 *p, __u16 v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void sl_guest_publish64(__u64 *p, __u64 v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void sl_guest_post(__u16 *p, __u16 v) { __atomic_store_n(p, v, __ATOMIC_RELAXED); }

#endif
