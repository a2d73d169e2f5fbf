/* SPDX-License-Identifier: Apache-2.0 */
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "vhost/memory.h"

enum { PAGE_LEN = 4096 };
#define HUGE_MAX (1ull << 30)             /* largest page of a file that is believed */

static bool ranges_meet(uint64_t a, uint64_t a_len, uint64_t b, uint64_t b_len)
{
	return a < b + b_len && b < a + a_len;   /* neither sum overflows: sl_vu_region_is_valid */
}

static bool region_is(const struct sl_vhost_region *a, const struct sl_vu_region *r, const struct stat *st)
{
	return a->gpa == r->gpa && a->uva == r->uva && a->len == r->len && a->file_off == r->file_off &&
	       a->dev == st->st_dev && a->ino == st->st_ino;
}

/* Maps whole pages around the region: of a file in huge pages, offset and length must be multiples of theirs. */
static int region_map(struct sl_vhost_region *to, const struct sl_vu_region *r, int fd, uint64_t page_len)
{
	uint64_t delta = r->file_off & (page_len - 1), len;
	struct sl_guard *g;
	int err;

	if (__builtin_add_overflow(r->len, delta + page_len - 1, &len))
		return -ERANGE;
	g = malloc(sizeof(*g));
	if (!g)
		return -ENOMEM;
	*g = (struct sl_guard){ .len = len & ~(page_len - 1) };
	g->map = mmap(NULL, g->len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, (off_t)(r->file_off - delta));
	if (g->map == MAP_FAILED) {
		err = -errno;
		free(g);
		return err;
	}
	sl_guard_add(g);
	to->guard = g;
	to->hva = (uint8_t *)g->map + delta;
	return 0;
}

static bool file_is_memory(struct sl_vhost_memory *mem, const struct stat *st, int seals)
{
	if (!mem->nb) {
		mem->dev = st->st_dev;
		mem->ino = st->st_ino;
	}
	return seals >= 0 && (seals & F_SEAL_SHRINK) && mem->dev == st->st_dev && mem->ino == st->st_ino;
}

int sl_vhost_memory_add(struct sl_vhost_memory *mem, const struct sl_vu_region *r, int fd, bool unsealed_ok)
{
	struct sl_vhost_region *to;
	uint64_t page_len;
	struct stat st;
	int seals, err;
	uint32_t i;

	/* before the size is read: from then on a sealed file has at least that size */
	seals = fcntl(fd, F_GET_SEALS);
	if (fstat(fd, &st) || !S_ISREG(st.st_mode))
		return -EBADF;
	if (r->file_off + r->len > (uint64_t)st.st_size)
		return -ERANGE;
	for (i = 0; i < mem->nb; i++) {
		if (region_is(&mem->region[i], r, &st))
			return 0;
		if (ranges_meet(r->gpa, r->len, mem->region[i].gpa, mem->region[i].len) ||
		    ranges_meet(r->uva, r->len, mem->region[i].uva, mem->region[i].len))
			return -EEXIST;
	}
	if (mem->nb == SL_VHOST_REGIONS)
		return -ENOSPC;
	to = &mem->region[mem->nb];
	*to = (struct sl_vhost_region){
		.gpa = r->gpa, .uva = r->uva, .len = r->len, .file_off = r->file_off, .dev = st.st_dev, .ino = st.st_ino,
	};
	if (file_is_memory(mem, &st, seals) || unsealed_ok) {
		page_len = (uint64_t)st.st_blksize;
		if (page_len < PAGE_LEN || page_len > HUGE_MAX || (page_len & (page_len - 1)))
			page_len = PAGE_LEN;
		err = region_map(to, r, fd, page_len);
		if (err)
			return err;
	}
	mem->nb++;
	return 0;
}

int sl_vhost_memory_remove(struct sl_vhost_memory *mem, const struct sl_vu_region *r, struct sl_vhost_region *ret)
{
	uint32_t i;

	for (i = 0; i < mem->nb; i++)
		if (mem->region[i].gpa == r->gpa && mem->region[i].uva == r->uva && mem->region[i].len == r->len) {
			*ret = mem->region[i];
			mem->region[i] = mem->region[--mem->nb];
			return 0;
		}
	return -ENOENT;
}

void sl_vhost_region_unmap(struct sl_vhost_region *region)
{
	if (region->guard) {
		sl_guard_drop(region->guard);
		munmap(region->guard->map, region->guard->len);
		free(region->guard);
	}
	*region = (struct sl_vhost_region){ 0 };
}

bool sl_vhost_memory_is_lost(const struct sl_vhost_memory *mem)
{
	uint32_t i;

	for (i = 0; i < mem->nb; i++)
		if (mem->region[i].guard && mem->region[i].guard->lost)
			return true;
	return false;
}

void sl_vhost_memory_clear(struct sl_vhost_memory *mem)
{
	while (mem->nb)
		sl_vhost_region_unmap(&mem->region[--mem->nb]);
}

void *sl_vhost_uva(const struct sl_vhost_memory *mem, uint64_t uva, uint64_t len)
{
	uint32_t i;

	for (i = 0; i < mem->nb; i++) {
		const struct sl_vhost_region *r = &mem->region[i];
		uint64_t off = uva - r->uva;

		if (off < r->len)
			return len <= r->len - off && r->hva ? r->hva + off : NULL;
	}
	return NULL;
}
