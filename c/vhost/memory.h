/* SPDX-License-Identifier: Apache-2.0 */
/* A guest's memory as its front-end shares it. Guest physical (gpa) and front-end (uva) addresses are numbers until
 * sl_vhost_gpa or sl_vhost_uva has turned a whole range into a host address (hva): inside one region, or refused.
 *
 * A file that may be cut short would end this process by SIGBUS. Such a file (no F_SEAL_SHRINK) is taken note of but
 * not mapped: an address in it is as wrong as one outside of everything. Only files in memory can be sealed, so no file
 * system that answers late, or never, is touched. What a sealed file can still lose is guarded (guard.h).
 *
 * Neither is any file mapped but that of the first region, which is where a machine's memory begins: QEMU also offers what
 * was plugged into the machine, such as its edges, and those are none of this process's business. */
#ifndef SL_VHOST_MEMORY_H
#define SL_VHOST_MEMORY_H

#include "base/base.h"
#include "vhost/guard.h"
#include "vhost/message.h"
#include "vhost/offer.h"

struct sl_vhost_region {
	uint64_t gpa, uva, len;
	uint8_t *hva;                     /* NULL: not mapped */
	struct sl_guard *guard;           /* of the mapping: whole pages of the file's size around [hva, hva + len) */
	uint64_t file_off, dev, ino;      /* where it is in which file */
};

struct sl_vhost_memory {
	uint32_t nb;
	uint64_t dev, ino;                /* of the first region's file; undefined while nb is 0 */
	struct sl_vhost_region region[SL_VHOST_REGIONS];
};

/* Maps a region of fd, which stays the caller's and is needed no more. unsealed_ok: map all files, also those that may
 * shrink (only for peers that are trusted). r is valid (sl_vu_region_is_valid). A region that is there already stays: QEMU 7.2 adds each
 * once for every queue pair. -EEXIST: overlaps another in gpa or uva; -ENOSPC:
 * too many; -EBADF: not a file that can be mapped; -ERANGE: beyond the file's end; or the kernel's. */
int sl_vhost_memory_add(struct sl_vhost_memory *mem, const struct sl_vu_region *r, int fd, bool unsealed_ok);
/* Moves the region with these gpa, uva and length to *ret (see sl_vhost_region_unmap). -ENOENT. */
int sl_vhost_memory_remove(struct sl_vhost_memory *mem, const struct sl_vu_region *r, struct sl_vhost_region *ret);
void sl_vhost_region_unmap(struct sl_vhost_region *region);
/* Whether a region went away under us: its contents are lost, for good. */
bool sl_vhost_memory_is_lost(const struct sl_vhost_memory *mem);
/* Unmaps everything; no ring may use it any more. */
void sl_vhost_memory_clear(struct sl_vhost_memory *mem);

/* [addr, addr + len) as host memory, or NULL: not wholly inside one mapped region. len > 0. */
static inline void *sl_vhost_gpa(const struct sl_vhost_memory *mem, uint64_t gpa, uint64_t len)
{
	uint32_t i;

	for (i = 0; i < mem->nb; i++) {
		const struct sl_vhost_region *r = &mem->region[i];
		uint64_t off = gpa - r->gpa;

		if (off < r->len)
			return len <= r->len - off && r->hva ? r->hva + off : NULL;
	}
	return NULL;
}

void *sl_vhost_uva(const struct sl_vhost_memory *mem, uint64_t uva, uint64_t len);

#endif
