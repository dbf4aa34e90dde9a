"""A double of Schema Registry that speaks its HTTP interface, as far as clients read it, on a thread of the test."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"


@dataclass
class Registered:
    """`serialized`: what `format=serialized` gives of a Protobuf schema."""

    kind: str
    text: str
    serialized: str = ""
    references: list[tuple[str, str, int]] = field(default_factory=list)
    """(name, subject, version)"""


class Registry:
    """Set `failing` to a status, or `password`, at any time."""

    def __init__(self) -> None:
        self.schemas: dict[int, Registered] = {}
        self.subjects: dict[tuple[str, int], int] = {}
        self.failing = 0
        self.password = ""
        """`user:password` that is asked for; empty: nobody is asked."""
        self.requests: list[str] = []
        self.port = 0
        self._server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def add(self, schema: int, registered: Registered, subject: str = "", version: int = 1) -> None:
        self.schemas[schema] = registered
        if subject:
            self.subjects[subject, version] = schema

    def up(self) -> None:
        """Listen; on the same port as before, if it was up before."""
        handler = type("Handler", (_Handler,), {"registry": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def down(self) -> None:
        """Refuse connections."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def answer(self, path: str, authorization: str) -> tuple[int, dict[str, Any]]:
        self.requests.append(path)
        if self.password and authorization != "Basic " + base64.b64encode(self.password.encode()).decode():
            return 401, {"error_code": 401, "message": "Unauthorized"}
        if self.failing:
            return self.failing, {"error_code": self.failing * 100 + 1, "message": "Error in the backend"}
        parts = urlsplit(path)
        serialized = parse_qs(parts.query).get("format") == ["serialized"]
        if found := re.fullmatch(r"/schemas/ids/(\d+)", parts.path):
            schema = int(found[1])
            if schema not in self.schemas:
                return 404, {"error_code": 40403, "message": "Schema not found"}
            return 200, _body(self.schemas[schema], serialized=serialized)
        if found := re.fullmatch(r"/subjects/([^/]+)/versions/(\d+|latest)", parts.path):
            subject = found[1]
            latest = max((version for name, version in self.subjects if name == subject), default=0)
            version = latest if found[2] == "latest" else int(found[2])
            known = self.subjects.get((subject, version))
            if known is None:
                return 404, {"error_code": 40401, "message": "Subject not found"}
            return 200, _body(self.schemas[known], serialized=serialized) | {"subject": subject, "version": version, "id": known}
        return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}


def _body(registered: Registered, *, serialized: bool) -> dict[str, Any]:
    body: dict[str, Any] = {"schema": registered.serialized if serialized and registered.serialized else registered.text}
    if registered.kind != "AVRO":  # which is what it leaves out
        body["schemaType"] = registered.kind
    if registered.references:
        body["references"] = [{"name": name, "subject": subject, "version": version} for name, subject, version in registered.references]
    return body


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: ClassVar[Registry]

    def do_GET(self) -> None:
        status, body = self.registry.answer(self.path, self.headers.get("Authorization", ""))
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@contextlib.contextmanager
def schema_registry() -> Iterator[Registry]:
    registry = Registry()
    registry.up()
    try:
        yield registry
    finally:
        registry.down()


def framed(schema: int, payload: bytes) -> bytes:
    return b"\0" + schema.to_bytes(4, "big") + payload
