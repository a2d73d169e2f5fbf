/* SPDX-License-Identifier: Apache-2.0 */
/* What the tests of the layer app share: a folder of files, requests and answers as messages, over the fake of the
 * flow library. */
#ifndef SL_APP_RIG_H
#define SL_APP_RIG_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <cmocka.h>

#include "abi/http.h"
#include "fake_flow.h"

#define GET SL_HTTP_GET
#define HEAD SL_HTTP_HEAD
#define T(name) cmocka_unit_test_setup_teardown(name, world_open, world_close)

extern const struct sl_layer sl_layer_app;

struct world {
	struct fake k;
	struct sl_app_conf conf;
	char dir[64];            /* root is dir/root, so that there is something outside it */
};

int world_open(void **state);    /* set-up and tear-down of a test */
int world_close(void **state);
/* Names are below dir. All files are of Sun, 06 Nov 1994 08:49:37 GMT. */
void file_write(const struct world *w, const char *name, const void *p, size_t len);
void folder_make(const struct world *w, const char *name);

enum { BIG_LEN = 300000 };       /* of root/big.bin */
uint8_t big_byte(size_t i);

struct message {
	uint8_t data[SL_HTTP_HEAD_MAX];
	uint32_t len;
};
/* fields: "name: value\n" repeated, NULL for none */
struct sl_http_request *message_make(struct message *m, uint8_t method, const char *target, const char *fields,
				     uint64_t body_len);
struct fake_flow *request_send(struct world *w, uint8_t method, const char *target, const char *fields);

struct answer {
	struct sl_http_response r;
	char fields[2048];       /* "name: value\n" repeated */
	const uint8_t *body;
	size_t body_len;
};
void answer_read(const struct fake_flow *ff, struct answer *a);
const char *field_of(const struct answer *a, const char *name);   /* NULL: none; valid until the next call */
void big_check(const struct fake_flow *ff, size_t from, size_t to);        /* the body is that piece of big.bin */
void body_expect(struct world *w, const char *target, const char *body);   /* GET answers with this body */

/* A request and what is expected */
struct row {
	uint8_t method;
	const char *target, *fields;
	unsigned status;
	const char *field;       /* "name: value" that the answer has, "-name" that it has not, NULL: not looked at */
	const char *body;        /* NULL: not looked at */
};
void row_check(struct world *w, const struct row *r);
void rows_check(struct world *w, const struct row *rows, size_t nb);

#endif
