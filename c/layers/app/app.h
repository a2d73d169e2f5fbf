/* SPDX-License-Identifier: Apache-2.0 */
/* The app layer's parts. Reading order: app.c (the layer, one request's life), message.c (the request as it came,
 * the head of the answer), target.c (which file is meant), files.c (open files), static.c (which answer: conditions,
 * ranges), echo.c, mime.c, date.c.
 *
 * An answer is up to three sources sent one after another by sl_app_push(): held (the head, and the text of an
 * error), then a piece of a file, or the bytes that data() shows just now. */
#ifndef SL_APP_H
#define SL_APP_H

#include "abi/http.h"
#include "edge/edge.h"
#include "instance/layer.h"

enum {
	SL_APP_PIECE = 16384,      /* bytes sent at once: what fits into one TLS record further on */
	SL_APP_HEAD_MAX = 1024,    /* bytes of an answer's head, and of an error's text with it */
	SL_APP_PATH_MAX = 4096,    /* bytes of a decoded path with its zero: the kernel's limit */
	SL_APP_FILES = 64,         /* files kept open */
	SL_APP_FRESH_NS = 1000000000,   /* for so long a file is taken for unchanged */
	SL_APP_DATE_LEN = 30,      /* "Sun, 06 Nov 1994 08:49:37 GMT" with its zero */
};

struct sl_app_text {
	const char *p;   /* not terminated; NULL: absent */
	uint32_t len;
};

/* Fields that decide something here */
enum sl_app_field {
	SL_APP_CONTENT_TYPE,
	SL_APP_IF_MATCH,
	SL_APP_IF_MODIFIED_SINCE,
	SL_APP_IF_NONE_MATCH,
	SL_APP_IF_RANGE,
	SL_APP_IF_UNMODIFIED_SINCE,
	SL_APP_RANGE,
	SL_APP_FIELD_NB,
};

/* A request message, checked: every text lies inside it. Valid during open(). */
struct sl_app_message {
	struct sl_http_request r;
	const uint8_t *base;
	struct sl_app_text path, query;
	struct sl_app_text field[SL_APP_FIELD_NB];   /* the first line with that name */
	uint8_t nb_lines[SL_APP_FIELD_NB];           /* lines with that name, 255 and more are 255 */
};

/* An open file and all that is always said about it */
struct sl_app_file {
	uint32_t refs;               /* requests that use it, + 1 while it is in the table */
	uint32_t hash;               /* of path */
	int fd;
	uint64_t used_ns, checked_ns;
	uint64_t dev, ino, size, mtime_ns;
	char etag[56];               /* with its quotes; changes with every change of the file */
	char last_modified[SL_APP_DATE_LEN];
	const char *type;
	uint32_t head_len;
	uint8_t head[320];           /* of the answer 200 */
	uint32_t path_len;
	char path[];                 /* decoded, relative to the root */
};

struct sl_app_request {
	struct sl_list node;         /* among the free or the running ones */
	struct sl_app *app;
	struct sl_flow *flow;
	bool echo;
	bool last;                   /* FIN follows what is there now */
	bool started;                /* something was sent */
	struct sl_answer answer;
	uint64_t body_len, body_in;  /* of the request: announced (all ones: not known), taken */
	struct sl_app_file *file;
	uint64_t pos, end;           /* piece of the file still to be sent */
	const uint8_t *shown;        /* echo: bytes in data() */
	uint32_t shown_len;
	uint32_t held_pos, held_len;
	uint8_t held[SL_APP_HEAD_MAX];
};

struct sl_app {
	struct sl_instance *inst;
	struct sl_app_conf conf;
	int root;                    /* directory descriptor, -1: none */
	struct sl_app_file *files[SL_APP_FILES];
	struct sl_app_request *requests;   /* [conf.max_requests] */
	uint32_t nb_requests;        /* of them ever used */
	struct sl_list free, running;
};

extern const struct sl_layer sl_layer_app;

/* app.c */
/* Sends what is there, as far as the flow takes it; called again from writable(). May end the request. */
void sl_app_push(struct sl_app_request *r);
/* Resets the flow and frees the request. */
void sl_app_abort(struct sl_app_request *r, enum sl_request_status status);

/* message.c */
/* Checks msg, len bytes of private memory. Returns 0 or -EBADMSG. */
int sl_app_message_read(struct sl_app_message *m, const void *msg, uint32_t len);
/* Calls each(line, arg) for the lines of that name until it returns true; returns whether it did. */
bool sl_app_field_any(const struct sl_app_message *m, enum sl_app_field name,
		      bool (*each)(struct sl_app_text line, const void *arg), const void *arg);

/* The head of an answer, while it is put together */
struct sl_app_head {
	struct sl_http_response r;
	struct sl_http_field fields[8];   /* offsets count from text until it is written */
	uint32_t text_len;
	bool full;                        /* something did not fit */
	char text[SL_APP_HEAD_MAX];
};
void sl_app_head_init(struct sl_app_head *h, uint16_t status, uint64_t body_len);
void sl_app_head_add(struct sl_app_head *h, const char *name, const char *value, size_t len);
/* Writes the message into out, cap bytes. Returns its length, 0: it does not fit. */
uint32_t sl_app_head_write(struct sl_app_head *h, uint8_t *out, uint32_t cap);
/* Answers with a status and its name as text, and one more field if name is not NULL. */
void sl_app_answer(struct sl_app_request *r, const struct sl_app_message *m, uint16_t status, const char *name,
		   const char *value);

/* target.c */
/* Decodes an absolute path into out[SL_APP_PATH_MAX], relative to the root, without empty and "." segments; *dir: a
 * folder is meant. Returns 0; -EINVAL malformed, or an encoded slash or zero, or "..": what could mean one thing
 * here and another elsewhere is refused; -ENAMETOOLONG. */
int sl_app_target_decode(struct sl_app_text path, char *out, uint32_t *out_len, bool *dir);
/* Writes the path with "/" added, and the query, as a reference that can only mean this server. Returns its length,
 * 0: more than cap. */
uint32_t sl_app_target_redirect(struct sl_app_text path, struct sl_app_text query, char *out, uint32_t cap);

/* files.c */
/* Opens a file below the root, or finds it open. path: path_len bytes and a zero. Returns 0 and *ret to be given
 * back with sl_app_file_put, -EISDIR for a folder, or the error of openat2(2). */
int sl_app_file_get(struct sl_app *app, const char *path, uint32_t path_len, struct sl_app_file **ret);
void sl_app_file_put(struct sl_app_file *f);
void sl_app_files_close(struct sl_app *app);

/* static.c, echo.c: begin the answer */
void sl_app_static(struct sl_app_request *r, const struct sl_app_message *m);
void sl_app_echo(struct sl_app_request *r, const struct sl_app_message *m);

/* mime.c: media type by the name's extension */
const char *sl_app_mime(const char *path);

/* date.c: HTTP dates (RFC 9110 section 5.6.7), seconds since 1970 */
void sl_app_date_format(int64_t t, char out[SL_APP_DATE_LEN]);
/* All three forms. Returns 0 or -EINVAL. */
int sl_app_date_parse(struct sl_app_text text, int64_t *t);

#endif
