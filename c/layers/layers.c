/* SPDX-License-Identifier: Apache-2.0 */
/* The layers that are built in. A new layer is one line here and one folder beside this file. */
#include "layers/layers.h"

const struct sl_layer *const sl_layers[] = {&sl_layer_tcp, &sl_layer_tls, &sl_layer_http, &sl_layer_app, NULL};
