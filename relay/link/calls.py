"""The calls that travel as `Fetch`: their names and the shapes of their bodies. Answered by a `Page` with an HTTP status, or `Refused`.

Bodies are JSON. What the client sent is carried as it came (`msgspec.Raw`): the core checks the MAC of a TokenRequest over the client's
own spelling, so that nothing on the way may rewrite it. `encode` and `decode` are the two ends:

    Fetch(req, "", REQUEST_TOKEN, encode(RequestToken(key_name, Raw(body), basic, address)))
    match decode(fetch.what, fetch.body):
        case RequestToken(key_name=name): ...
"""

from __future__ import annotations

import msgspec

REQUEST_TOKEN = "requestToken"  # noqa: S105 - the name of a route
"""`POST /keys/{keyName}/requestToken`. Page: 201 and a TokenDetails."""
CREATE_APP = "sandbox.create_app"
"""`POST /apps`. Page: 201 and the app with its keys. Refused with 40400 unless the core runs as a sandbox."""
DELETE_APP = "sandbox.delete_app"
"""`DELETE /apps/{id}`. Page: 204, no body."""


class Call(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """The base of all bodies. Fields are only ever added, with a default."""


class RequestToken(Call, frozen=True):
    """`body` is the TokenRequest as JSON, signed or not. `basic` is the API key (`app.id:secret`) that came with it, if one did."""

    key_name: str
    """From the path; the core compares it with the one in the body."""
    body: msgspec.Raw
    basic: str | None = None
    address: str = ""
    """Where the request came from, for the limits on failures."""


class CreateApp(Call, frozen=True):
    """`body` is the app as the client suite sent it: keys, namespaces, channels with fixtures."""

    body: msgspec.Raw


class DeleteApp(Call, frozen=True):
    """`basic` is the API key that came with the request: it must be one of the app's own."""

    app: str
    basic: str | None


CALLS: dict[str, type[Call]] = {REQUEST_TOKEN: RequestToken, CREATE_APP: CreateApp, DELETE_APP: DeleteApp}


class UnknownCall(Exception):  # noqa: N818 - a refusal, not a fault of ours
    """The name is not one of `CALLS`, or the body is not of its shape. The text names the call, never what the body holds."""


_encoder = msgspec.json.Encoder()


def encode(call: Call) -> bytes:
    """The body of a `Fetch`. A `Raw` that is empty or not JSON makes a body that `decode` refuses: check it before."""
    return _encoder.encode(call)


def decode(what: str, body: bytes) -> Call:
    """The body of a `Fetch` as its type. Raises `UnknownCall`."""
    shape = CALLS.get(what)
    if shape is None:
        raise UnknownCall("unknown call")
    try:
        return msgspec.json.decode(body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise UnknownCall(f"malformed body of {what}") from None
