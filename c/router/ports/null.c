/* SPDX-License-Identifier: Apache-2.0 */
/* A port that is memory only. */
#include <stdlib.h>

#include "router/ports/port.h"

static struct sl_port_null *null_of(struct sl_port *port)
{
	return sl_container_of(port, struct sl_port_null, port);
}

static uint32_t null_rx_burst(struct sl_port *port, struct sl_frame *frames, uint32_t nb)
{
	struct sl_port_null *n = null_of(port);
	uint32_t i;

	nb = sl_min(nb, n->nb_rx);
	for (i = 0; i < nb; i++)
		frames[i] = (struct sl_frame){
			.seg = {{ n->rx[i] + SL_VLAN_MAX, n->rx_len[i] }}, .nb_seg = 1, .len = n->rx_len[i],
			.meta = n->rx_meta[i],
		};
	n->nb_rx = 0;
	return nb;
}

static uint32_t null_tx_burst(struct sl_port *port, const struct sl_frame *frames, uint32_t nb)
{
	struct sl_port_null *n = null_of(port);
	uint32_t i, s;

	port->error = 0;
	for (i = 0; i < nb; i++) {
		uint8_t *to = n->tx[n->nb_tx];

		if (n->nb_tx == n->tx_cap || frames[i].len > SL_FRAME_MAX) {
			port->error = n->nb_tx == n->tx_cap ? -EAGAIN : -EMSGSIZE;
			break;
		}
		for (s = 0; s < frames[i].nb_seg; s++)
			to = mempcpy(to, frames[i].seg[s].iov_base, frames[i].seg[s].iov_len);
		n->tx_len[n->nb_tx++] = frames[i].len;
	}
	return i;
}

static void null_close(struct sl_port *port)
{
	free(null_of(port));
}

int sl_port_null_open(struct sl_port **ret)
{
	static const struct sl_port_ops ops = { null_rx_burst, null_tx_burst, null_close };
	struct sl_port_null *n = calloc(1, sizeof(*n));

	if (!n)
		return -ENOMEM;
	n->port = (struct sl_port){ .ops = &ops, .fd = -1 };
	n->tx_cap = SL_NULL_CAP;
	*ret = &n->port;
	return 0;
}

int sl_port_null_put(struct sl_port *port, const void *frame, uint32_t len, const struct sl_meta *meta)
{
	struct sl_port_null *n = null_of(port);

	if (len > SL_FRAME_MAX)
		return -EMSGSIZE;
	if (n->nb_rx == SL_BURST)
		return -ENOSPC;
	memcpy(n->rx[n->nb_rx] + SL_VLAN_MAX, frame, len);
	n->rx_meta[n->nb_rx] = meta ? *meta : (struct sl_meta){ 0 };
	n->rx_len[n->nb_rx++] = len;
	return 0;
}
