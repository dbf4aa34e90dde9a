"""The head of an HTTP/1.1 request, read strictly (RFC 9112 sections 3 and 5), to decide who serves the connection."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import overload

_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) (HTTP/1\.[01])")
_FIELD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\r\n\0]*?)[ \t]*")


class BadHead(ValueError):  # noqa: N818 - the request is bad, not an error of ours
    """Not an HTTP/1 request head."""


class Headers:
    """Field names without regard to case, in their order, repeated ones kept."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs

    @overload
    def get(self, name: str) -> str | None: ...
    @overload
    def get(self, name: str, default: str) -> str: ...
    def get(self, name: str, default: str | None = None) -> str | None:
        """The first field of that name."""
        name = name.lower()
        return next((value for key, value in self.pairs if key == name), default)

    def all(self, name: str) -> list[str]:
        name = name.lower()
        return [value for key, value in self.pairs if key == name]

    def tokens(self, name: str) -> set[str]:
        """The members of a comma-separated list such as `Connection: keep-alive, Upgrade`, in lower case."""
        return {token.strip().lower() for value in self.all(name) for token in value.split(",") if token.strip()}


@dataclass(frozen=True, slots=True)
class Request:
    """One request head. `target` may hold a credential in its query: it goes into no log."""

    method: str
    target: str
    headers: Headers

    @property
    def path(self) -> str:
        """Without the query; undecoded."""
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        """What follows `?`, undecoded; empty without one."""
        return self.target.partition("?")[2]

    @property
    def wants_websocket(self) -> bool:
        """Whether this asks to become a WebSocket (RFC 6455 section 4.1), well or badly."""
        return self.method == "GET" and "websocket" in self.headers.tokens("upgrade") and "upgrade" in self.headers.tokens("connection")

    @property
    def websocket_key(self) -> str | None:
        """The Sec-WebSocket-Key if it is 16 bytes in base64, else None."""
        key = self.headers.get("sec-websocket-key", "")
        try:
            return key if len(base64.b64decode(key.encode("ascii"), validate=True)) == 16 else None
        except (UnicodeEncodeError, binascii.Error):
            return None

    def __repr__(self) -> str:
        return f"Request({self.method} {self.path})"


def parse_head(head: bytes) -> Request:
    """A request head without the empty line that ends it. Raises: BadHead. O(len(head))."""
    first, *lines = head.split(b"\r\n")
    line = _LINE.fullmatch(first)
    if line is None:
        raise BadHead("request line")
    pairs = []
    for field in lines:
        found = _FIELD.fullmatch(field)
        if found is None:
            raise BadHead("header field")
        pairs.append((found.group(1).decode("ascii").lower(), found.group(2).decode("latin-1")))
    return Request(line.group(1).decode("ascii"), line.group(2).decode("latin-1"), Headers(pairs))
