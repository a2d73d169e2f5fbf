/* SPDX-License-Identifier: Apache-2.0 */
/* What a vhost-user device counts, by name. "to" is towards the guest, "from" comes from it. Each frame given to the
 * device counts in TO_FRAMES or one of TO_DROP_; each buffer of the guest's in FROM_FRAMES or one of FROM_DROP_; each
 * violation in one of SL_VHOST_VIOLATIONS, once, because the ring (RING_, but not SETUP) or the link (all others) ends
 * with it. */
#ifndef SL_VHOST_COUNT_H
#define SL_VHOST_COUNT_H

#define SL_VHOST_COUNTS(X) \
	X(TO_FRAMES, to_frames) \
	X(TO_BYTES, to_bytes) \
	X(TO_DROP_DOWN, to_drop_down)                   /* no link, or its ring is not started or not enabled */ \
	X(TO_DROP_FULL, to_drop_full)                   /* the guest had no free buffer */ \
	X(TO_DROP_NO_ROOM, to_drop_no_room)             /* the next buffers are too small for the frame */ \
	X(FROM_FRAMES, from_frames) \
	X(FROM_BYTES, from_bytes) \
	X(FROM_DROP_RUNT, from_drop_runt)               /* shorter than virtio-net header and Ethernet header */ \
	X(FROM_DROP_OVERSIZE, from_drop_oversize)       /* longer than the caller's buffers */ \
	X(FROM_DROP_OFFLOAD, from_drop_offload)         /* asks for an offload that was not negotiated */ \
	X(FROM_DROP_DISABLED, from_drop_disabled)       /* sent on a ring that is not enabled */ \
	X(CALLS, calls)                                 /* interrupts given to the guest */ \
	X(KICKS, kicks)                                 /* wake-ups by the guest */ \
	X(STARTS, starts)                               /* of rings */ \
	X(MESSAGES, messages) \
	X(LINK_UP, link_up) \
	X(LINK_LOST, link_lost)                         /* ended by the peer */ \
	X(LINK_REFUSED, link_refused)                   /* who listens is not the owner of the socket's folder */ \
	X(LINK_QUARANTINED, link_quarantined)           /* ended by us after a violation */ \
	SL_VHOST_VIOLATIONS(X)

#define SL_VHOST_VIOLATIONS(X) \
	X(RING_JUMP, ring_jump)                         /* more buffers made available than the ring holds */ \
	X(RING_INDEX, ring_index)                       /* a descriptor's number beyond the ring */ \
	X(RING_CHAIN, ring_chain)                       /* a chain that loops or is too long */ \
	X(RING_FLAGS, ring_flags)                       /* indirect, or readable where writable is due or reverse */ \
	X(RING_LENGTH, ring_length)                     /* a descriptor without length */ \
	X(RING_ADDRESS, ring_address)                   /* a range that is not inside one region */ \
	X(RING_SETUP, ring_setup)                       /* ring not in the guest's memory, misaligned, no size, legacy */ \
	X(MSG_HEADER, msg_header)                       /* version, reply bit, or no such request */ \
	X(MSG_REFUSED, msg_refused)                     /* a request that this back-end does not know on purpose */ \
	X(MSG_SIZE, msg_size) \
	X(MSG_FDS, msg_fds)                             /* wrong number of descriptors, or of the wrong kind */ \
	X(MSG_STATE, msg_state)                         /* not legal now, or its feature was not negotiated */ \
	X(MSG_VALUE, msg_value)                         /* a field out of its range */ \
	X(MSG_MEMORY, msg_memory)                       /* regions that overlap, exceed their file, or can not be mapped */ \
	X(MEMORY_LOST, memory_lost)                     /* taken away while it was in use */ \
	X(STORM_KICKS, storm_kicks)                     /* far more kicks than frames */ \
	X(STORM_MESSAGES, storm_messages) \
	X(STORM_RESETS, storm_resets)                   /* rings started again and again */ \
	X(STORM_LINKS, storm_links)                     /* links ended by the peer again and again */

#define SL_VHOST_COUNT_ENUM(upper, lower) SL_VHOST_##upper,
enum sl_vhost_count { SL_VHOST_COUNTS(SL_VHOST_COUNT_ENUM) SL_VHOST_COUNT_NB };
enum { SL_VHOST_VIOLATION_FIRST = SL_VHOST_RING_JUMP };
#undef SL_VHOST_COUNT_ENUM

/* "to_frames" for SL_VHOST_TO_FRAMES and so on; NULL beyond the last. */
const char *sl_vhost_count_name(unsigned int which);

#endif
