/* SPDX-License-Identifier: Apache-2.0 */
/* vhost-user messages as they are on the wire (QEMU 7.2 docs/interop/vhost-user.rst), little endian, and the check that
 * each must pass before anything in it is used. The sender is hostile. */
#ifndef SL_VHOST_MESSAGE_H
#define SL_VHOST_MESSAGE_H

#include <linux/types.h>

#include "base/base.h"
#include "vhost/count.h"

enum sl_vu_request {
	SL_VU_GET_FEATURES = 1,
	SL_VU_SET_FEATURES = 2,
	SL_VU_SET_OWNER = 3,
	SL_VU_RESET_OWNER = 4,
	SL_VU_SET_MEM_TABLE = 5,
	SL_VU_SET_VRING_NUM = 8,
	SL_VU_SET_VRING_ADDR = 9,
	SL_VU_SET_VRING_BASE = 10,
	SL_VU_GET_VRING_BASE = 11,
	SL_VU_SET_VRING_KICK = 12,
	SL_VU_SET_VRING_CALL = 13,
	SL_VU_SET_VRING_ERR = 14,
	SL_VU_GET_PROTOCOL_FEATURES = 15,
	SL_VU_SET_PROTOCOL_FEATURES = 16,
	SL_VU_GET_QUEUE_NUM = 17,
	SL_VU_SET_VRING_ENABLE = 18,
	SL_VU_SEND_RARP = 19,
	SL_VU_NET_SET_MTU = 20,
	SL_VU_GET_MAX_MEM_SLOTS = 36,
	SL_VU_ADD_MEM_REG = 37,
	SL_VU_REM_MEM_REG = 38,
	SL_VU_REQUEST_NB = 41,            /* the specification's; what is not named above is refused */
};

enum {                                    /* bits of sl_vu_header.flags */
	SL_VU_VERSION = 1,
	SL_VU_REPLY = 1 << 2,
	SL_VU_NEED_REPLY = 1 << 3,
};

enum { SL_VU_F_PROTOCOL_FEATURES = 30 };  /* the transport's own bit among the device's features */

enum {                                    /* protocol features, bit numbers */
	SL_VU_F_MQ = 0,
	SL_VU_F_REPLY_ACK = 3,
	SL_VU_F_NET_MTU = 4,
	SL_VU_F_CONFIGURE_MEM_SLOTS = 15,
};

enum {
	SL_VU_TABLE_REGIONS = 8,          /* of one SET_MEM_TABLE, and descriptors with it */
	SL_VU_FDS_MAX = 8,
	SL_VU_MTU_MIN = 68,
	SL_VU_INDEX_MASK = 0xff,          /* of the u64 of SET_VRING_KICK, CALL and ERR */
	SL_VU_NO_FD = 0x100,              /* the same: no descriptor comes with it */
};

struct sl_vu_header {
	__u32 request;
	__u32 flags;
	__u32 size;                       /* bytes of payload */
};
_Static_assert(sizeof(struct sl_vu_header) == 12, "wire format");

struct sl_vu_state {
	__u32 index;                      /* of a ring */
	__u32 num;
};

struct sl_vu_addr {
	__u32 index;
	__u32 flags;                      /* bit 0: log writes; not offered, so zero */
	__u64 desc_uva;
	__u64 device_uva;                 /* used ring, or device event area */
	__u64 driver_uva;                 /* available ring, or driver event area */
	__u64 log_gpa;
};
_Static_assert(sizeof(struct sl_vu_addr) == 40, "wire format");

struct sl_vu_region {
	__u64 gpa;
	__u64 len;
	__u64 uva;                        /* the same bytes in the front-end's address space */
	__u64 file_off;
};

struct sl_vu_table {
	__u32 nb;
	__u32 pad;
	struct sl_vu_region region[SL_VU_TABLE_REGIONS];
};

struct sl_vu_one_region {
	__u64 pad;
	struct sl_vu_region region;
};

union sl_vu_payload {
	__u64 u64;
	struct sl_vu_state state;
	struct sl_vu_addr addr;
	struct sl_vu_table table;
	struct sl_vu_one_region one;
};
_Static_assert(sizeof(union sl_vu_payload) == 264, "wire format");

struct sl_vu_msg {
	struct sl_vu_header hdr;
	union sl_vu_payload body;         /* bytes beyond hdr.size are zero */
	int fds[SL_VU_FDS_MAX];           /* who handles the message sets those that it keeps to -1 */
	__u32 nb_fd;
};

/* Checks a header alone, before its payload is read. Returns -1, or which SL_VHOST_MSG_ it violates. */
int sl_vu_header_check(const struct sl_vu_header *h);

/* Checks a complete message: size, number of descriptors, each field as far as the message alone can tell; protocol:
 * negotiated protocol features. Returns -1 or which SL_VHOST_MSG_. */
int sl_vu_msg_check(const struct sl_vu_msg *m, __u64 protocol);

/* Whether the request has an answer of its own (and so none by REPLY_ACK). */
bool sl_vu_has_answer(__u32 request);

/* One check for each struct. */
bool sl_vu_region_is_valid(const struct sl_vu_region *r);
bool sl_vu_table_is_valid(const struct sl_vu_table *t, __u32 len);
bool sl_vu_addr_is_valid(const struct sl_vu_addr *a);

#endif
