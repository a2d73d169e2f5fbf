# SPDX-License-Identifier: Apache-2.0
"""HTTP/1.1 requests that must be refused, each with the status of its refusal (RFC 9112, RFC 6585)."""


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((b"POST /echo HTTP/1.1", b"Host: a", *fields, b"", b"")) + body


BAD = {
    "length and chunked": (400, post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n")),
    "two lengths": (400, post(b"Content-Length: 5", b"Content-Length: 6", body=b"hello")),
    "list of lengths": (400, post(b"Content-Length: 5, 6", body=b"hello")),
    "length with sign": (400, post(b"Content-Length: +5", body=b"hello")),
    "negative length": (400, post(b"Content-Length: -5", body=b"hello")),
    "length in hex": (400, post(b"Content-Length: 0x5", body=b"hello")),
    "endless length": (400, post(b"Content-Length: 99999999999999999999999")),
    "length over the limit": (413, post(b"Content-Length: 1048577")),
    "chunked twice": (400, post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n")),
    "chunked not last": (400, post(b"Transfer-Encoding: chunked, identity", body=b"0\r\n\r\n")),
    "two codings": (400, post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n")),
    "unknown coding": (400, post(b"Transfer-Encoding: xchunked", body=b"0\r\n\r\n")),
    "chunked in HTTP/1.0": (400, b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "chunk size with text": (400, post(b"Transfer-Encoding: chunked", body=b"5x\r\nhello\r\n0\r\n\r\n")),
    "chunk size with sign": (400, post(b"Transfer-Encoding: chunked", body=b"+5\r\nhello\r\n0\r\n\r\n")),
    "chunk size too large": (
        400,
        post(b"Transfer-Encoding: chunked", body=b"ffffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    ),
    "chunk longer than said": (400, post(b"Transfer-Encoding: chunked", body=b"3\r\nhello\r\n0\r\n\r\n")),
    "chunk ended by LF": (400, post(b"Transfer-Encoding: chunked", body=b"5\nhello\n0\n\n")),
    "folded line": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n 2\r\n\r\n"),
    "bare LF": (400, b"GET / HTTP/1.1\nHost: a\n\n"),
    "bare CR": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\rY: 2\r\n\r\n"),
    "NUL in a value": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n"),
    "space before colon": (400, b"GET / HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n"),
    "no Host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two Hosts": (400, b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"),
    "two spaces": (400, b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "no version": (400, b"GET /\r\n\r\n"),
    "other version": (505, b"GET / HTTP/2.0\r\nHost: a\r\n\r\n"),
    "unknown method": (501, b"FETCH / HTTP/1.1\r\nHost: a\r\n\r\n"),
    "tunnel": (501, b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n"),
    "TLS": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200)),
    "huge header": (431, b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 5000 + b"\r\n\r\n"),
    "many headers": (431, b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: 1\r\n" * 20 + b"\r\n"),
    "long target": (414, b"GET /" + b"x" * 1100 + b" HTTP/1.1\r\nHost: a\r\n\r\n"),
    "endless request line": (414, b"GET /" + b"x" * 5000),
    "strange expectation": (417, post(b"Content-Length: 5", b"Expect: miracle", body=b"hello")),
}
