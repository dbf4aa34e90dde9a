"""The console: pages, style and scripts at `/console/`, served from files that come with Tidegate.

They are the same for everybody and hold nothing: what they show they ask of the Control API, with the access token that their user has
typed in. There is no cookie and nothing to build, and the content security policy lets a page load from here and nowhere else, run
no script and no style that is not such a file, and make no markup out of text.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from core.control.io.api import refusal
from relay.model.errors import RelayError

FILES = Path(__file__).parents[1] / "console"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class _Asset(NamedTuple):
    content: bytes
    media_type: str
    etag: str


def console_routes() -> list[BaseRoute]:
    """`/console/` and what it loads. Read once: nothing that a request names is looked for on a disk."""
    assets = {}
    for path in sorted(FILES.iterdir()):
        if path.suffix in _TYPES:
            content = path.read_bytes()
            assets[path.name] = _Asset(content, _TYPES[path.suffix], f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    async def serve(request: Request) -> Response:
        asset = assets.get(request.path_params.get("name", "index.html"))
        if asset is None:
            return refusal(RelayError(40400, "Not Found"))
        headers = {**HEADERS, "etag": asset.etag}
        if asset.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(asset.content, headers=headers, media_type=asset.media_type)

    async def to_page(_: Request) -> Response:
        return RedirectResponse("/console/", 308, headers=HEADERS)

    return [Route("/console", to_page), Route("/console/", serve), Route("/console/{name}", serve)]
