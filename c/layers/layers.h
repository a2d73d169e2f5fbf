/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SL_LAYERS_H
#define SL_LAYERS_H

#include "instance/layer.h"

extern const struct sl_layer sl_layer_tcp, sl_layer_tls, sl_layer_http, sl_layer_app;

#endif
