/* SPDX-License-Identifier: Apache-2.0 */
/* Files below the root. The kernel resolves the path and lets nothing leave the root (openat2 with RESOLVE_BENEATH):
 * a symbolic link may point anywhere inside, an absolute one or one with ".." over the root is refused.
 *
 * The last SL_APP_FILES files stay open with all that is said about them. After SL_APP_FRESH_NS the path is looked
 * up again, so that a replaced file is seen; a request that is being served keeps the file it began with. */
#include <fcntl.h>
#include <inttypes.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "layers/app/app.h"

static uint32_t path_hash(const char *p, uint32_t len)
{
	uint32_t h = 2166136261u;   /* FNV-1a */

	for (uint32_t i = 0; i < len; i++)
		h = (h ^ (unsigned char)p[i]) * 16777619u;
	return h;
}

/* Returns a descriptor or -errno. */
static int file_open(int root, const char *path)
{
	/* O_NONBLOCK: a FIFO must not stop the loop before it is found not to be a file */
	struct open_how how = {
		.flags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY,
		.resolve = RESOLVE_BENEATH | RESOLVE_NO_MAGICLINKS,
	};
	long fd = -1;

	/* EAGAIN: the kernel saw a rename somewhere in the meantime and can not promise RESOLVE_BENEATH */
	for (int i = 0; i < 8 && (!i || errno == EAGAIN) && fd < 0; i++)
		fd = syscall(SYS_openat2, root, path, &how, sizeof(how));
	return fd < 0 ? -errno : (int)fd;
}

void sl_app_file_put(struct sl_app_file *f)
{
	if (--f->refs)
		return;
	close(f->fd);
	free(f);
}

static int head_build(struct sl_app_file *f)
{
	struct sl_app_head h;

	sl_app_head_init(&h, 200, f->size);
	sl_app_head_add(&h, "content-type", f->type, strlen(f->type));
	sl_app_head_add(&h, "last-modified", f->last_modified, strlen(f->last_modified));
	sl_app_head_add(&h, "etag", f->etag, strlen(f->etag));
	sl_app_head_add(&h, "accept-ranges", "bytes", 5);
	f->head_len = sl_app_head_write(&h, f->head, sizeof(f->head));
	return f->head_len ? 0 : -EOVERFLOW;
}

static int file_new(int fd, const struct stat *st, const char *path, uint32_t path_len, struct sl_app_file **ret)
{
	struct sl_app_file *f = calloc(1, sizeof(*f) + path_len + 1);
	int err;

	if (!f)
		return -ENOMEM;
	f->refs = 1;
	f->fd = fd;
	f->hash = path_hash(path, path_len);
	f->dev = st->st_dev;
	f->ino = st->st_ino;
	f->size = (uint64_t)st->st_size;
	f->mtime_ns = (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec;
	memcpy(f->path, path, path_len);
	f->path_len = path_len;
	f->type = sl_app_mime(f->path);
	snprintf(f->etag, sizeof(f->etag), "\"%" PRIx64 "-%" PRIx64 "-%" PRIx64 "\"", f->mtime_ns, f->size, f->ino);
	sl_app_date_format(st->st_mtim.tv_sec, f->last_modified);
	err = head_build(f);
	if (err) {
		free(f);
		return err;
	}
	*ret = f;
	return 0;
}

static bool file_same(const struct sl_app_file *f, const struct stat *st)
{
	return f->dev == st->st_dev && f->ino == st->st_ino && f->size == (uint64_t)st->st_size &&
	       f->mtime_ns == (uint64_t)st->st_mtim.tv_sec * 1000000000u + (uint64_t)st->st_mtim.tv_nsec;
}

/* The place of path in the table, else the one to use for it: empty, or of the file not used for longest. */
static struct sl_app_file **place_find(struct sl_app *app, const char *path, uint32_t path_len, bool *found)
{
	uint32_t hash = path_hash(path, path_len);
	struct sl_app_file **oldest = &app->files[0];

	for (unsigned i = 0; i < SL_APP_FILES; i++) {
		struct sl_app_file *f = app->files[i];

		if (f && f->hash == hash && f->path_len == path_len && !memcmp(f->path, path, path_len)) {
			*found = true;
			return &app->files[i];
		}
		if (*oldest && (!f || f->used_ns < (*oldest)->used_ns))
			oldest = &app->files[i];
	}
	*found = false;
	return oldest;
}

static void place_clear(struct sl_app_file **place)
{
	if (*place)
		sl_app_file_put(*place);
	*place = NULL;
}

/* Looks the path up and brings its place up to date. */
static int place_fill(struct sl_app *app, struct sl_app_file **place, bool found, const char *path, uint32_t path_len)
{
	int fd = file_open(app->root, path), err = 0;
	struct stat st;

	if (fd < 0) {
		if (found)
			place_clear(place);
		return fd;
	}
	if (fstat(fd, &st))
		err = -errno;
	else if (!S_ISREG(st.st_mode))
		err = S_ISDIR(st.st_mode) ? -EISDIR : -EACCES;
	if (!err && found && file_same(*place, &st)) {
		close(fd);
		return 0;
	}
	if (found || !err)
		place_clear(place);
	if (!err)
		err = file_new(fd, &st, path, path_len, place);
	if (err)
		close(fd);
	return err;
}

int sl_app_file_get(struct sl_app *app, const char *path, uint32_t path_len, struct sl_app_file **ret)
{
	uint64_t now = app->inst->now_ns;
	struct sl_app_file **place;
	bool found;
	int err;

	if (app->root < 0)
		return -ENOENT;
	place = place_find(app, path, path_len, &found);
	if (!found || now - (*place)->checked_ns >= SL_APP_FRESH_NS) {
		err = place_fill(app, place, found, path, path_len);
		if (err)
			return err;
		(*place)->checked_ns = now;
	}
	(*place)->used_ns = now;
	(*place)->refs++;
	*ret = *place;
	return 0;
}

void sl_app_files_close(struct sl_app *app)
{
	for (unsigned i = 0; i < SL_APP_FILES; i++)
		place_clear(&app->files[i]);
}
