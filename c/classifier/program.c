/* SPDX-License-Identifier: Apache-2.0 */
/* The BPF program, compiled as it is: this file only makes its surroundings and calls it. */
#include "classifier/shim.h"

/* Its functions that the verifier checks alone are not static, and have no other caller. */
#pragma GCC diagnostic ignored "-Wmissing-prototypes"
#define _license sl_classify_license

/* A frame need not start so that its IP header is aligned to 4 bytes. Structs of headers are therefore declared here as
 * packed ones: on them the compiler does not rely on more than it may. */
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/types.h>
#include <asm/byteorder.h>
#include <bpf/bpf_endian.h>
#pragma pack(push, 1)
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include "ebpf/cursor.h"
#pragma pack(pop)

#include "ebpf/classifier.bpf.c"

uint32_t sl_classifier_run(struct sl_classifier *c, const struct sl_classifier_frame *frame, struct sl_meta *meta)
{
	struct sl_frame_context ctx = {
		.data = (uintptr_t)frame->data, .data_end = (uintptr_t)frame->data + frame->linear_len,
		.data_meta = (uintptr_t)frame->data, .rx_queue_index = frame->queue, .buff_len = frame->len,
		.meta = meta,
	};

	*meta = (struct sl_meta){ 0 };
	sl_running = c;
	return (uint32_t)sl_classify(&ctx);
}
