/* SPDX-License-Identifier: Apache-2.0 */
#include "vhost/storm.h"

enum { STORM_NS = 1000000000 };

static uint64_t from_guest(const struct sl_vhost *d)
{
	return d->count[SL_VHOST_FROM_FRAMES] + d->count[SL_VHOST_FROM_DROP_RUNT] + d->count[SL_VHOST_FROM_DROP_OVERSIZE] +
	       d->count[SL_VHOST_FROM_DROP_OFFLOAD] + d->count[SL_VHOST_FROM_DROP_DISABLED];
}

int sl_vhost_storm_find(struct sl_vhost_storm *s, const struct sl_vhost *d)
{
	static const int64_t max[] = { SL_VHOST_KICKS_MAX, SL_VHOST_MESSAGES_MAX, SL_VHOST_STARTS_MAX, SL_VHOST_LINKS_MAX };
	const uint64_t *count = d->count, now_ns = sl_now_ns();
	const uint64_t now[sl_nb(max)] = {
		d->kicked - from_guest(d), count[SL_VHOST_MESSAGES], count[SL_VHOST_STARTS], count[SL_VHOST_LINK_LOST],
	};
	int i;

	_Static_assert(sizeof(s->base) == sizeof(now), "all of them");
	_Static_assert(SL_VHOST_STORM_LINKS == SL_VHOST_STORM_KICKS + 3, "in this order");
	if (now_ns - s->begun_ns > STORM_NS) {
		s->begun_ns = now_ns;
		memcpy(s->base, now, sizeof(now));
	}
	for (i = 0; i < (int)sl_nb(max); i++)
		if ((int64_t)(now[i] - s->base[i]) > max[i])
			return SL_VHOST_STORM_KICKS + i;
	return -1;
}
