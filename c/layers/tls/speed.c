/* SPDX-License-Identifier: Apache-2.0 */
/* How fast this instance is at what it does most, for whoever weighs instances: measured while it is warm, else when it
 * becomes tls, and again when an accelerator comes, fails or works again. */
#include "layers/tls/tls.h"

#include "crypto/measure.h"

enum {
	MEASURE_NS = 500000,     /* for each figure */
	HANDSHAKES_NS = 2000000, /* about six of them */
	WATCH_MS = 200,          /* no longer than the manager takes to look at it */
	WATCH_MAX_MS = 5000,     /* a look at a dead one costs 50 ms */
};

/* Than the one that was measured last; or there is none. */
static bool has_other(const struct sl_tls *tls)
{
	uint32_t number = sl_aead_device_number();

	return !number || number != tls->accelerator;
}

/* NULL: there is none now. One that is there is measured once, and closed if it is slower. */
static struct sl_aead_engine *accelerator_open(struct sl_tls *tls)
{
	uint32_t number = sl_aead_device_number();
	struct sl_aead_engine *engine;
	char why[SL_AEAD_WHY_LEN];

	if (!number || !has_other(tls) || sl_aead_device_open(&engine, why))
		return NULL;
	tls->accelerator = number;
	return engine;
}

bool sl_tls_rehearse(struct sl_instance *inst)
{
	struct sl_crypto_figures *f = &inst->rehearsed;
	struct sl_aead *aead;

	if (inst->may_accelerate)   /* it is measured with the device */
		return false;
	if (f->kind == SL_CRYPTO_NONE && !sl_measure_choose(NULL, MEASURE_NS, &aead, f)) {
		sl_aead_close(aead);
		return true;
	}
	if (f->kind != SL_CRYPTO_NONE)
		sl_measure_handshakes(HANDSHAKES_NS, &f->handshakes);
	return false;
}

struct sl_aead *sl_tls_aead_choose(struct sl_tls *tls)
{
	const struct sl_crypto_figures *rehearsed = &tls->inst->rehearsed;
	struct sl_aead *aead = NULL;

	if (rehearsed->handshakes && !sl_measure_recall(rehearsed, &aead)) {
		tls->inst->crypto = *rehearsed;
		return aead;
	}
	if (sl_measure_choose(accelerator_open(tls), MEASURE_NS, &aead, &tls->inst->crypto))
		return NULL;
	sl_measure_handshakes(HANDSHAKES_NS, &tls->inst->crypto.handshakes);
	return aead;
}

/* Connections that are there stay with what they have, new ones get the best. */
static void accelerator_meet(struct sl_tls *tls)
{
	struct sl_aead_engine *engine = accelerator_open(tls);
	uint32_t handshakes = tls->inst->crypto.handshakes;
	struct sl_aead *aead;

	if (!engine || sl_measure_choose(engine, MEASURE_NS, &aead, &tls->inst->crypto))
		return;
	tls->inst->crypto.handshakes = handshakes;
	sl_aead_close(tls->crypto.aead);
	tls->crypto.aead = aead;
}

/* What the processor does does not fail. */
void sl_tls_aead_watch(struct sl_tls *tls)
{
	bool awaited = tls->inst->may_accelerate && has_other(tls);
	bool broken = sl_aead_is_broken(tls->crypto.aead);

	if (!awaited && !broken && sl_aead_kind(tls->crypto.aead) != SL_CRYPTO_DEVICE)
		return;
	tls->watch_ms = broken && !awaited && tls->watch_ms ? sl_min(2 * tls->watch_ms, (uint32_t)WATCH_MAX_MS)
							    : WATCH_MS;
	sl_timer_arm(&tls->inst->wheel, &tls->speed_timer, tls->watch_ms);
}

void sl_tls_speed_fire(struct sl_timer *t)
{
	struct sl_tls *tls = sl_container_of(t, struct sl_tls, speed_timer);
	struct sl_crypto_figures *told = &tls->inst->crypto;
	bool is_gone;

	accelerator_meet(tls);
	is_gone = told->kind == SL_CRYPTO_DEVICE && has_other(tls);   /* and nobody may have asked it since */
	if (is_gone || (sl_aead_is_broken(tls->crypto.aead) && told->kind != SL_CRYPTO_DEVICE))   /* once told */
		sl_aead_revive(tls->crypto.aead);
	if (told->kind != sl_aead_kind(tls->crypto.aead) ||
	    told->fallbacks != sl_aead_fallbacks(tls->crypto.aead))
		sl_measure_seal(tls->crypto.aead, MEASURE_NS, told);
	sl_tls_aead_watch(tls);
}
