"""Who may look at a core on its admin listener besides the Control API: `/v1/status`, `/v1/members` and `/v1/tail`.

With access tokens or clients configured: who may read by the Control API. With none: who asks from this very machine, and is no web page.
In `dev` everybody. The health pages are everybody's always.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from functools import wraps

from starlette.requests import Request
from starlette.responses import Response

from core.control.access import READ, Access
from core.control.io.api import principal_of, refusal
from relay.model.errors import RelayError

Page = Callable[[Request], Awaitable[Response]]


class Guard:
    def __init__(self, access: Access, now_ms: Callable[[], int], *, everybody: bool) -> None:
        self._access = access
        self._now_ms = now_ms
        self._everybody = everybody

    def __call__(self, page: Page) -> Page:
        @wraps(page)
        async def guarded(request: Request) -> Response:
            try:
                self._check(request)
            except RelayError as error:
                return refusal(error)
            return await page(request)

        return guarded

    def allows(self, request: Request) -> bool:
        """Whether who was let in may stay."""
        try:
            self._check(request)
        except RelayError:
            return False
        return True

    def _check(self, request: Request) -> None:
        """Raises: RelayError 40100, 40160."""
        if self._everybody:
            return
        now_ms = self._now_ms()
        if self._access.configured(now_ms):
            principal_of(request, self._access, now_ms).require(*READ)
        elif not _is_local(request) or _is_of_a_page(request):
            why = "Access denied: no access tokens are configured on this core, so that only its own machine may look"
            raise RelayError(40160, why, 403)


def _is_local(request: Request) -> bool:
    try:
        address = ipaddress.ip_address("" if request.client is None else request.client.host)
    except ValueError:
        return False
    return address.is_loopback or (
        isinstance(address, ipaddress.IPv6Address) and bool(address.ipv4_mapped and address.ipv4_mapped.is_loopback)
    )


def _is_of_a_page(request: Request) -> bool:
    """A browser on this machine asks for whatever a page of anybody wants."""
    return any(name in request.headers for name in ("origin", "sec-fetch-site"))
