/* SPDX-License-Identifier: Apache-2.0 */
#include "vhost/message.h"

enum { ANY_SIZE = 0xffff, NO_FEATURE = 0xff };

/* The allow-list. A request without "known" ends the link. */
static const struct {
	__u16 len;                        /* exact size of the payload; ANY_SIZE: its own check decides */
	__u8 fds_min, fds_max;
	__u8 feature;                     /* protocol feature that it belongs to */
	bool known, answers;
} rules[SL_VU_REQUEST_NB] = {
	[SL_VU_GET_FEATURES] = { 0, 0, 0, NO_FEATURE, true, true },
	[SL_VU_SET_FEATURES] = { 8, 0, 0, NO_FEATURE, true, false },
	[SL_VU_SET_OWNER] = { 0, 0, 0, NO_FEATURE, true, false },
	[SL_VU_RESET_OWNER] = { 0, 0, 0, NO_FEATURE, true, false },
	[SL_VU_SET_MEM_TABLE] = { ANY_SIZE, 0, SL_VU_TABLE_REGIONS, NO_FEATURE, true, false },
	[SL_VU_SET_VRING_NUM] = { 8, 0, 0, NO_FEATURE, true, false },
	[SL_VU_SET_VRING_ADDR] = { 40, 0, 0, NO_FEATURE, true, false },
	[SL_VU_SET_VRING_BASE] = { 8, 0, 0, NO_FEATURE, true, false },
	[SL_VU_GET_VRING_BASE] = { 8, 0, 0, NO_FEATURE, true, true },
	[SL_VU_SET_VRING_KICK] = { 8, 0, 1, NO_FEATURE, true, false },
	[SL_VU_SET_VRING_CALL] = { 8, 0, 1, NO_FEATURE, true, false },
	[SL_VU_SET_VRING_ERR] = { 8, 0, 1, NO_FEATURE, true, false },
	[SL_VU_GET_PROTOCOL_FEATURES] = { 0, 0, 0, NO_FEATURE, true, true },
	[SL_VU_SET_PROTOCOL_FEATURES] = { 8, 0, 0, NO_FEATURE, true, false },
	[SL_VU_GET_QUEUE_NUM] = { 0, 0, 0, SL_VU_F_MQ, true, true },
	[SL_VU_SET_VRING_ENABLE] = { 8, 0, 0, NO_FEATURE, true, false },
	[SL_VU_SEND_RARP] = { 8, 0, 0, NO_FEATURE, true, false },
	[SL_VU_NET_SET_MTU] = { 8, 0, 0, SL_VU_F_NET_MTU, true, false },
	[SL_VU_GET_MAX_MEM_SLOTS] = { 0, 0, 0, SL_VU_F_CONFIGURE_MEM_SLOTS, true, true },
	[SL_VU_ADD_MEM_REG] = { 40, 1, 1, SL_VU_F_CONFIGURE_MEM_SLOTS, true, false },
	/* the specification allows a descriptor here, to be closed unused */
	[SL_VU_REM_MEM_REG] = { 40, 0, 1, SL_VU_F_CONFIGURE_MEM_SLOTS, true, false },
};

bool sl_vu_has_answer(__u32 request)
{
	return request < SL_VU_REQUEST_NB && rules[request].answers;
}

int sl_vu_header_check(const struct sl_vu_header *h)
{
	if ((h->flags & ~(__u32)SL_VU_NEED_REPLY) != SL_VU_VERSION || !h->request || h->request >= SL_VU_REQUEST_NB)
		return SL_VHOST_MSG_HEADER;
	if (!rules[h->request].known)
		return SL_VHOST_MSG_REFUSED;
	if (rules[h->request].len == ANY_SIZE ? h->size > sizeof(union sl_vu_payload) : h->size != rules[h->request].len)
		return SL_VHOST_MSG_SIZE;
	return -1;
}

bool sl_vu_region_is_valid(const struct sl_vu_region *r)
{
	__u64 end;

	return r->len && !__builtin_add_overflow(r->gpa, r->len, &end) && !__builtin_add_overflow(r->uva, r->len, &end) &&
	       !__builtin_add_overflow(r->file_off, r->len, &end) && !(end >> 63);
}

bool sl_vu_table_is_valid(const struct sl_vu_table *t, __u32 len)
{
	__u32 i;

	if (t->nb > SL_VU_TABLE_REGIONS || len != offsetof(struct sl_vu_table, region) + t->nb * sizeof(t->region[0]))
		return false;
	for (i = 0; i < t->nb; i++)
		if (!sl_vu_region_is_valid(&t->region[i]))
			return false;
	return true;
}

bool sl_vu_addr_is_valid(const struct sl_vu_addr *a)
{
	return !a->flags && !(a->desc_uva & 15) && !(a->driver_uva & 1) && !(a->device_uva & 3);
}

static int fds_check(const struct sl_vu_msg *m)
{
	switch (m->hdr.request) {
	case SL_VU_SET_MEM_TABLE:
		return m->nb_fd == m->body.table.nb;
	case SL_VU_SET_VRING_KICK:
	case SL_VU_SET_VRING_CALL:
	case SL_VU_SET_VRING_ERR:
		return m->nb_fd == !(m->body.u64 & SL_VU_NO_FD);
	default:
		return m->nb_fd >= rules[m->hdr.request].fds_min && m->nb_fd <= rules[m->hdr.request].fds_max;
	}
}

static bool value_is_valid(const struct sl_vu_msg *m)
{
	switch (m->hdr.request) {
	case SL_VU_SET_MEM_TABLE:
		return sl_vu_table_is_valid(&m->body.table, m->hdr.size);
	case SL_VU_ADD_MEM_REG:
	case SL_VU_REM_MEM_REG:
		return sl_vu_region_is_valid(&m->body.one.region);
	case SL_VU_SET_VRING_ADDR:
		return sl_vu_addr_is_valid(&m->body.addr);
	case SL_VU_SET_VRING_ENABLE:
		return m->body.state.num <= 1;
	case SL_VU_SET_VRING_KICK:
	case SL_VU_SET_VRING_CALL:
	case SL_VU_SET_VRING_ERR:
		return !(m->body.u64 & ~(__u64)(SL_VU_INDEX_MASK | SL_VU_NO_FD));
	case SL_VU_NET_SET_MTU:
		return m->body.u64 >= SL_VU_MTU_MIN && m->body.u64 <= 0xffff;
	default:
		return true;
	}
}

int sl_vu_msg_check(const struct sl_vu_msg *m, __u64 protocol)
{
	int wrong = sl_vu_header_check(&m->hdr);

	if (wrong >= 0)
		return wrong;
	if (!value_is_valid(m))
		return SL_VHOST_MSG_VALUE;
	if (!fds_check(m))
		return SL_VHOST_MSG_FDS;
	if (rules[m->hdr.request].feature != NO_FEATURE && !(protocol >> rules[m->hdr.request].feature & 1))
		return SL_VHOST_MSG_STATE;
	return -1;
}

const char *sl_vhost_count_name(unsigned int which)
{
#define NAME(upper, lower) #lower,
	static const char *const names[] = { SL_VHOST_COUNTS(NAME) };
#undef NAME

	return which < sl_nb(names) ? names[which] : NULL;
}
