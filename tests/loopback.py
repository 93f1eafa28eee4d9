"""A real HTTP server on loopback that misbehaves as told."""

import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """How one request is answered."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)  # beside those of the body
    ranges: bool = True  # False: the whole body, whatever was asked for
    if_range: bool = True  # False: ranges whatever If-Range says
    breaks_after: int | None = None  # bytes that are sent before the connection is closed
    resets: bool = False  # … is reset
    stalls_after: int | None = None  # bytes after which nothing comes any more
    chunked: bool = False  # no Content-Length
    slowly: float = 0.0  # seconds between pieces of 10,000 bytes
    gate: threading.Barrier | None = None  # passed before answering


@dataclass
class Request:
    path: str
    headers: Mapping[str, str]
    sent: int = 0  # bytes of body

    @property
    def range(self) -> str | None:
        return self.headers.get("Range")


@dataclass
class Loopback:
    """The server: `replies[path]` are given in turn, the last one again and again."""

    url: str = ""
    replies: dict[str, list[Reply]] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def put(self, path: str, *replies: Reply) -> str:
        """Answer requests for `path` so; its URL."""
        self.replies[path] = list(replies)
        return self.url + path

    def reply(self, path: str) -> Reply:
        waiting = self.replies.get(path, [Reply(status=404)])
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]


@contextmanager
def loopback() -> Iterator[Loopback]:
    told = Loopback()

    class Handler(_Handler):
        loopback = told

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        told.url = f"http://127.0.0.1:{server.server_address[1]}/"
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield told
        told.closing.set()
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    loopback: Loopback

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        request = Request(path, dict(self.headers))
        self.loopback.requests.append(request)
        reply = self.loopback.reply(path)
        if reply.gate:
            reply.gate.wait()
        self.close_connection = True
        begin = self._begin(reply)
        if begin > len(reply.body) or (begin and begin == len(reply.body)):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(reply.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self._send_head(reply, begin)
        with suppress(ConnectionError):
            self._send_body(reply, reply.body[begin:], request)

    def _begin(self, reply: Reply) -> int:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        current = (None, reply.headers.get("ETag"), reply.headers.get("Last-Modified"))
        if not asked or not reply.ranges or reply.status != 200:
            return 0
        return int(asked[1]) if not reply.if_range or self.headers.get("If-Range") in current else 0

    def _send_head(self, reply: Reply, begin: int) -> None:
        self.send_response(206 if begin else reply.status)
        if begin:
            self.send_header("Content-Range", f"bytes {begin}-{len(reply.body) - 1}/{len(reply.body)}")
        if reply.chunked:
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(reply.body) - begin))
        self.send_header("Connection", "close")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_body(self, reply: Reply, body: bytes, request: Request) -> None:
        ends = [end for end in (reply.breaks_after, reply.stalls_after) if end is not None]
        body = body[: min(ends, default=len(body))]
        step = 10_000 if reply.slowly or reply.chunked else max(len(body), 1)
        for start in range(0, len(body), step):
            piece = body[start : start + step]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if reply.chunked else piece)
            request.sent += len(piece)
            if self.loopback.closing.wait(reply.slowly):
                return
        if reply.stalls_after is not None:
            self.loopback.closing.wait(10)
        elif reply.chunked and reply.breaks_after is None:
            self.wfile.write(b"0\r\n\r\n")
        if reply.resets:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
