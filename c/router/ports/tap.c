/* SPDX-License-Identifier: Apache-2.0 */
/* A tap device's queue: one frame per read or write. */
#include <fcntl.h>
#include <linux/if_tun.h>
#include <net/if.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "router/ports/port.h"

struct sl_tap {
	struct sl_port port;
	struct sl_tap_bufs *bufs;
};

static struct sl_tap *tap_of(struct sl_port *port)
{
	return sl_container_of(port, struct sl_tap, port);
}

static uint32_t tap_rx_burst(struct sl_port *port, struct sl_frame *frames, uint32_t nb)
{
	struct sl_tap_bufs *bufs = tap_of(port)->bufs;
	uint32_t i = 0, reads;

	port->error = 0;
	nb = sl_min(nb, (uint32_t)SL_BURST);
	for (reads = 0; reads < nb; reads++) {
		uint8_t *to = bufs->data[i] + SL_VLAN_MAX;
		/* without vnet header the kernel cuts a longer frame off and returns the length that fitted: a full
		 * buffer was cut */
		ssize_t len = read(port->fd, to, SL_FRAME_MAX);

		if (len < 0) {
			port->error = errno == EAGAIN || errno == EINTR ? 0 : -errno;
			break;
		}
		if (len == SL_FRAME_MAX) {
			port->oversize++;
			continue;
		}
		frames[i++] = (struct sl_frame){ .seg = {{ to, (size_t)len }}, .nb_seg = 1, .len = (uint32_t)len };
	}
	return i;
}

static uint32_t tap_tx_burst(struct sl_port *port, const struct sl_frame *frames, uint32_t nb)
{
	uint32_t i;

	port->error = 0;
	for (i = 0; i < nb; i++) {
		if (writev(port->fd, frames[i].seg, (int)frames[i].nb_seg) >= 0)
			continue;
		port->error = errno == ENOBUFS || errno == ENOMEM ? -EAGAIN : -errno;
		break;
	}
	return i;
}

static void tap_close(struct sl_port *port)
{
	close(port->fd);
	free(tap_of(port));
}

int sl_port_tap_open(int fd, uint16_t vm_id, struct sl_tap_bufs *bufs, struct sl_port **ret)
{
	static const struct sl_port_ops ops = { tap_rx_burst, tap_tx_burst, tap_close };
	struct ifreq ifr = { 0 };
	struct sl_tap *tap;
	int flags;

	/* IFF_NO_PI can not be asked for: TUNGETIFF uses its bit to say that there is no socket filter */
	if (ioctl(fd, TUNGETIFF, &ifr) || (ifr.ifr_flags & (IFF_TAP | IFF_VNET_HDR)) != IFF_TAP)
		return -EINVAL;
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK))
		return -errno;
	tap = malloc(sizeof(*tap));
	if (!tap)
		return -ENOMEM;
	*tap = (struct sl_tap){ .port = { .ops = &ops, .fd = fd, .vm_id = vm_id }, .bufs = bufs };
	*ret = &tap->port;
	return 0;
}
