/* SPDX-License-Identifier: Apache-2.0 */
/* Building what select_best_vm draws from. Called whenever weights or links change. */
#ifndef SL_ROUTE_H
#define SL_ROUTE_H

struct sl_edge;

void sl_alias_build(struct sl_edge *e);

#endif
