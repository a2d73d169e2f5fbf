/* SPDX-License-Identifier: Apache-2.0 */
#include "edge/region.h"

#include "base/atomic.h"
#include "base/base.h"

enum { PAGE_LEN = 4096, HUGE_PAGE_LEN = 2 << 20 };

static __u64 align_up(__u64 v, __u64 to)
{
	return (v + to - 1) & ~(to - 1);
}

static bool power_of_two(__u32 v)
{
	return v && !(v & (v - 1));
}

static void defaults_fill(struct sl_region *g)
{
	g->ring_cap = g->ring_cap ? g->ring_cap : SL_RING_CAP;
	g->small_len = g->small_len ? g->small_len : SL_SMALL_LEN;
	g->nb_small = g->nb_small ? g->nb_small : SL_NB_SMALL;
	g->big_len = g->big_len ? g->big_len : SL_BIG_LEN;
	g->nb_big = g->nb_big ? g->nb_big : SL_NB_BIG;
}

static bool counts_ok(const struct sl_region *g)
{
	return g->nb_front >= 1 && g->nb_front <= SL_SIDE_MAX && g->nb_back >= 1 && g->nb_back <= SL_SIDE_MAX &&
	       power_of_two(g->ring_cap) && g->ring_cap >= 8 && g->ring_cap <= SL_RING_CAP_MAX &&
	       g->small_len >= SL_CACHELINE && g->small_len % SL_CACHELINE == 0 && g->small_len <= g->big_len &&
	       g->big_len % SL_CACHELINE == 0 && g->big_len <= 1 << 20 && g->nb_small >= 1 && g->nb_small <= 0xffff &&
	       g->nb_big >= 1 && g->nb_big <= 0xffff;
}

int sl_region_plan(struct sl_region *g, __u64 page_len)
{
	__u64 peers;

	defaults_fill(g);
	if (!counts_ok(g) || (page_len != PAGE_LEN && page_len != HUGE_PAGE_LEN))
		return -EINVAL;
	peers = g->nb_front + g->nb_back;
	g->magic = SL_REGION_MAGIC;
	g->abi_version = SL_ABI_VERSION;
	g->peers_off = PAGE_LEN;
	g->rings_off = g->peers_off + peers * sizeof(struct sl_peer);
	g->ring_len = sizeof(struct sl_ring) +
		      (__u64)g->ring_cap * (sizeof(struct sl_request_packet) + sizeof(struct sl_completion));
	g->arenas_off = align_up(g->rings_off + 2ull * g->nb_front * g->nb_back * g->ring_len, PAGE_LEN);
	g->arena_len = (__u64)g->nb_small * g->small_len + (__u64)g->nb_big * g->big_len;
	g->region_len = align_up(g->arenas_off + peers * g->arena_len, page_len);
	return g->region_len >> 32 ? -EFBIG : 0;
}

void sl_region_format(void *base, const struct sl_region *g)
{
	struct sl_region *r = base;

	*r = *g;
	r->magic = 0;
	/* whoever sees the magic must see the rest of the header */
	sl_publish_u32(&r->magic, g->magic);
}

int sl_region_check(const void *base, __u64 map_len, struct sl_region *g)
{
	struct sl_region want;

	if (map_len < PAGE_LEN || sl_observe_u32(base) != SL_REGION_MAGIC)
		return -EAGAIN;
	memcpy(g, base, sizeof(*g));
	sl_copied_once();
	if (g->abi_version != SL_ABI_VERSION)
		return -EPROTO;
	want = *g;
	if (!counts_ok(g) || sl_region_plan(&want, g->region_len % HUGE_PAGE_LEN ? PAGE_LEN : HUGE_PAGE_LEN))
		return -EINVAL;
	/* a multiple of 2 MiB may have been planned with small pages: then the end, and nothing else, differs */
	if (want.region_len != g->region_len && (sl_region_plan(&want, PAGE_LEN) || want.region_len != g->region_len))
		return -EINVAL;
	return memcmp(&want, g, sizeof(want)) || g->region_len > map_len ? -EINVAL : 0;
}

__u32 sl_load_acquire_u32(const __u32 *p)
{
	return sl_observe_u32(p);
}

void sl_store_release_u32(__u32 *p, __u32 v)
{
	sl_publish_u32(p, v);
}

void sl_fence(void)
{
	sl_full_fence();
}
