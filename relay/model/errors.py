"""Errors as typed values: the code is the interface, the text is for people and free to improve.

Numbers are those of ably-common (`protocol/errors.json`); each stands where the refusal is raised.
"""

from __future__ import annotations

import msgspec

HELP = "https://help.ably.io/error/"

STATUS: dict[int, int] = {
    40009: 413, 40014: 404, 40020: 400, 40120: 403, 40110: 403, 40111: 403, 40150: 403, 40310: 403, 40311: 403, 40300: 403,
    40400: 404, 40500: 405, 40900: 409, 50003: 504, 50004: 503, 50005: 503, 50320: 503, 80003: 400, 80016: 410, 80021: 429,
    80022: 410, 90003: 404, 90004: 404, 90005: 404, 90007: 408, 90021: 429, 91007: 500, 40121: 400,
}  # fmt: skip
"""HTTP status of a code where it is not the code's first three digits (or 400 for the 8xxxx and 9xxxx families)."""


def status_of(code: int) -> int:
    """The HTTP status that goes with `code`. O(1)."""
    if code in STATUS:
        return STATUS[code]
    if 40100 <= code < 40200:
        return 401
    return code // 100 if 40000 <= code < 60000 else 400


class ErrorInfo(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """An error as clients see it. Source: protocol specification TI1-TI5."""

    code: int
    status_code: int
    message: str
    href: str | None = None

    @classmethod
    def of(cls, code: int, message: str, status_code: int | None = None) -> ErrorInfo:
        return cls(code, status_of(code) if status_code is None else status_code, message, f"{HELP}{code}")


class RelayError(Exception):
    """A refusal with a code. Raising is choosing the code; shells turn it into ERROR, NACK, an HTTP answer or `Refused`."""

    def __init__(self, code: int, message: str, status_code: int | None = None) -> None:
        super().__init__(message)
        self.info = ErrorInfo.of(code, message, status_code)

    @property
    def code(self) -> int:
        return self.info.code
