/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>

#include <cmocka.h>

#include "test_vhost_kinds.h"

/* each test runs for all of these; the bases make positions wrap early */
const struct kind kinds[NB_KINDS] = {
	{ F_PLAIN, 8, 0 },
	{ F_PLAIN | F_EVENT | F_MRG, 8, 0xfffd },
	{ F_PLAIN | F_PACKED, 8, 0x8000 },
	{ F_PLAIN | F_PACKED | F_EVENT | F_MRG, 7, 0x8005 },   /* packed sizes need be no power of two */
	{ F_PLAIN | F_PACKED, 8, 3 },                          /* in an odd lap */
};

static uint8_t memory[32][GUEST_FRAME_MAX];
struct sl_vq_buf bufs[32];

uint32_t recv_all(struct guest *g)
{
	uint32_t i, turn = 0;
	bool more;

	for (i = 0; i < 32; i++)
		bufs[i].data = memory[i];
	return sl_vhost_recv(&g->dev, bufs, 32, &turn, &more);
}

int send_one(struct guest *g, const void *frame, uint32_t len)
{
	struct iovec seg = { (void *)(uintptr_t)frame, len };
	int err = sl_vhost_send(&g->dev, 0, &seg, 1, len);

	sl_vhost_flush(&g->dev);
	return err;
}

void assert_filled(const uint8_t *p, uint32_t len, uint8_t fill)
{
	uint32_t i;

	for (i = 0; i < len; i++)
		assert_int_equal(p[i], fill);
}

void for_kinds(void (*run)(struct guest *, const struct kind *))
{
	static struct guest g;
	size_t i;

	for (i = 0; i < sl_nb(kinds); i++) {
		guest_start(&g, kinds[i].features, kinds[i].size, kinds[i].base);
		run(&g, &kinds[i]);
		guest_close(&g);
	}
}
