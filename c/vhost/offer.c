/* SPDX-License-Identifier: Apache-2.0 */
#include "vhost/offer.h"

#include <linux/virtio_config.h>
#include <linux/virtio_net.h>
#include <linux/virtio_ring.h>

#include "vhost/message.h"

#define BIT(n) (1ull << (n))

uint64_t sl_vhost_features(void)
{
	return BIT(VIRTIO_F_VERSION_1) | BIT(VIRTIO_F_RING_PACKED) | BIT(VIRTIO_F_IN_ORDER) | BIT(VIRTIO_RING_F_EVENT_IDX) |
	       BIT(VIRTIO_NET_F_MRG_RXBUF) | BIT(VIRTIO_NET_F_MQ) | BIT(VIRTIO_NET_F_MTU) | BIT(SL_VU_F_PROTOCOL_FEATURES);
}

uint64_t sl_vhost_protocol_features(void)
{
	return BIT(SL_VU_F_MQ) | BIT(SL_VU_F_REPLY_ACK) | BIT(SL_VU_F_NET_MTU) | BIT(SL_VU_F_CONFIGURE_MEM_SLOTS);
}
