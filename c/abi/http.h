/* SPDX-License-Identifier: (GPL-2.0-only OR BSD-3-Clause) */
/* The parsed HTTP message: what http and app hand to each other instead of bytes to parse again.
 *
 * A message is a fixed struct, then nb_fields struct sl_http_field, then the text that both refer to by offset from the
 * message's start, padded to head_len. Body bytes may follow in the same payload behind head_len. Names of fields are
 * lower case (RFC 9110 section 5.1 makes them case-insensitive). No text is zero-terminated. The reader bounds every
 * offset + length by head_len, and head_len by the payload. Framing fields (content-length, transfer-encoding,
 * connection, ...) never appear among the fields: body_len and http's own choice stand for them. */
#ifndef SL_ABI_HTTP_H
#define SL_ABI_HTTP_H

#include "base.h"

enum {
	SL_HTTP_MAGIC = 0x534c4831,       /* "SLH1" */
	SL_HTTP_FIELDS_MAX = 128,         /* fields of one message */
	SL_HTTP_HEAD_MAX = 18432,         /* bytes of a head: one big slot */
};

enum sl_http_method {
	SL_HTTP_OTHER = 0,     /* method_off, method_len have its name */
	SL_HTTP_GET = 1,
	SL_HTTP_HEAD = 2,
	SL_HTTP_POST = 3,
	SL_HTTP_PUT = 4,
	SL_HTTP_DELETE = 5,
	SL_HTTP_OPTIONS = 6,
	SL_HTTP_PATCH = 7,
};

struct sl_http_field {
	__u16 name_off;
	__u16 name_len;
	__u16 value_off;
	__u16 value_len;
};
_Static_assert(sizeof(struct sl_http_field) == 8, "no implicit padding");

/* Writer: http. Reader: app. Payload of OPEN on http-app; request_id of the packet names the request. */
struct sl_http_request {
	__u32 magic;            /* SL_HTTP_MAGIC */
	__u16 head_len;         /* bytes of struct, fields and text */
	__u16 nb_fields;
	__u64 body_len;         /* bytes of body in all; all ones: not known, the body ends with FIN */
	__u16 method_off;       /* the method's name as sent */
	__u16 method_len;
	__u16 path_off;         /* absolute path, still percent-encoded, "*" for OPTIONS * */
	__u16 path_len;
	__u16 query_off;        /* without "?", query_len 0: none */
	__u16 query_len;
	__u16 authority_off;    /* host[:port] of Host or of the absolute-form target (RFC 9112 section 3.2.2) */
	__u16 authority_len;
	__u8 method;            /* enum sl_http_method */
	__u8 version_minor;     /* of HTTP/1.x */
	__u8 tls;               /* 1: came over TLS */
	__u8 pad;
	__u16 service;
	__be16 client_port;
	__u8 client_addr[16];   /* as in struct sl_flow_open */
};
_Static_assert(sizeof(struct sl_http_request) == 56, "no implicit padding");

/* Writer: app. Reader: http. Begins the first DATA of the back direction; body bytes may follow at head_len. */
struct sl_http_response {
	__u32 magic;            /* SL_HTTP_MAGIC */
	__u16 head_len;
	__u16 nb_fields;
	__u64 body_len;         /* as above; for HEAD and 304 the length that GET would have had */
	__u16 status;           /* 200 ... 599 (RFC 9110 section 15); http makes 1xx itself */
	__u8 pad[6];
};
_Static_assert(sizeof(struct sl_http_response) == 24, "no implicit padding");

#endif
