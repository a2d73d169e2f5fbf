/* SPDX-License-Identifier: Apache-2.0 */
/* A file of its own: whoever does not choose need not carry libipsec-mb, which is large. */
#include "crypto/measure.h"

/* A record of no size may become slower: most answers are short, and what large ones gain does not help them. */
static bool is_faster(const struct sl_crypto_figures *f, const struct sl_crypto_figures *than)
{
	for (size_t i = 0; i < sl_nb(f->seal_mbps); i++)
		if (f->seal_mbps[i] < than->seal_mbps[i])
			return false;
	return sl_measure_cost_ns(f) < sl_measure_cost_ns(than);
}

/* Keeps whichever of *best and engine's is faster. The engine is taken over. */
static int better(struct sl_aead_engine *engine, uint64_t budget_ns, struct sl_aead **best,
		  struct sl_crypto_figures *best_figures)
{
	struct sl_crypto_figures f = { 0 };
	struct sl_aead *a;
	int err = sl_aead_open(engine, &a);

	if (err) {
		if (engine)
			engine->ops->close(engine);
		return err;
	}
	err = sl_measure_seal(a, budget_ns, &f);
	if (err || (*best && (sl_aead_is_broken(a) || !is_faster(&f, best_figures)))) {
		sl_aead_close(a);
		return err;
	}
	sl_aead_close(*best);
	*best = a;
	*best_figures = f;
	return 0;
}

int sl_measure_choose(struct sl_aead_engine *device, uint64_t budget_ns, struct sl_aead **ret,
		      struct sl_crypto_figures *figures)
{
	struct sl_aead_engine *multi;
	struct sl_aead *best = NULL;
	int err = better(NULL, budget_ns, &best, figures);

	if (!err && !sl_aead_multi_open(&multi))
		err = better(multi, budget_ns, &best, figures);
	if (device && !err)
		err = better(device, budget_ns, &best, figures);
	else if (device)
		device->ops->close(device);
	if (err) {
		sl_aead_close(best);
		return err;
	}
	*ret = best;
	return 0;
}

int sl_measure_recall(const struct sl_crypto_figures *figures, struct sl_aead **ret)
{
	struct sl_aead_engine *multi = NULL;
	int err;

	if (figures->kind == SL_CRYPTO_MULTI_BUFFER && sl_aead_multi_open(&multi))
		return -ENOMEM;   /* it was there */
	err = sl_aead_open(multi, ret);
	if (err && multi)
		multi->ops->close(multi);
	return err;
}
