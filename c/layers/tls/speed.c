/* SPDX-License-Identifier: Apache-2.0 */
/* How fast this instance is at what it does most, for whoever weighs instances: measured when it becomes tls, and again
 * when a device failed or came back. */
#include "layers/tls/tls.h"

#include "crypto/measure.h"

enum {
	MEASURE_NS = 500000,   /* for each figure */
	WATCH_MS = 200,        /* no longer than the manager takes to look at it */
};

struct sl_aead *sl_tls_aead_choose(struct sl_instance *inst)
{
	struct sl_aead *aead = NULL;

	if (sl_measure_choose(NULL, MEASURE_NS, &aead, &inst->crypto))
		return NULL;
	sl_measure_handshakes(MEASURE_NS, &inst->crypto.handshakes);
	return aead;
}

/* What the processor does does not fail. */
void sl_tls_aead_watch(struct sl_tls *tls)
{
	if (sl_aead_kind(tls->crypto.aead) == SL_CRYPTO_DEVICE || sl_aead_is_broken(tls->crypto.aead))
		sl_timer_arm(&tls->inst->wheel, &tls->speed_timer, WATCH_MS);
}

void sl_tls_speed_fire(struct sl_timer *t)
{
	struct sl_tls *tls = sl_container_of(t, struct sl_tls, speed_timer);
	struct sl_aead *aead = tls->crypto.aead;
	struct sl_crypto_figures *told = &tls->inst->crypto;

	if (sl_aead_is_broken(aead))
		sl_aead_revive(aead);
	if (told->kind != sl_aead_kind(aead) || told->fallbacks != sl_aead_fallbacks(aead))
		sl_measure_seal(aead, MEASURE_NS, told);
	sl_tls_aead_watch(tls);
}
