/* SPDX-License-Identifier: Apache-2.0 */
/* usage: bench-crypto openssl|multi 256|1400|16384    prints the GB/s of sealing records of that size, AES-256-GCM */
#include <stdio.h>
#include <stdlib.h>

#include "crypto/measure.h"

enum { BUDGET_NS = 100000000 };

int main(int argc, char **argv)
{
	struct sl_aead_engine *engine = NULL;
	struct sl_crypto_figures f = { 0 };
	struct sl_aead *a;
	int at;

	if (argc != 3)
		return 2;
	sl_aead_multi_load();
	at = !strcmp(argv[2], "256") ? 0 : !strcmp(argv[2], "1400") ? 1 : 2;
	if (!strcmp(argv[1], "multi") && sl_aead_multi_open(&engine)) {
		fputs("no libipsec-mb in this build, or no AES instructions\n", stderr);
		return 1;
	}
	if (sl_aead_open(engine, &a) || sl_measure_seal(a, BUDGET_NS, &f))
		return 1;
	printf("%.4f\n", f.seal_mbps[at] / 1000.0);
	sl_aead_close(a);
	return 0;
}
