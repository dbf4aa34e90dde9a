"""The Control API over HTTP, on the admin listener: `/v1` and `/api/v1` are the same. Source: Ably protocol docs, 11.7 to 11.9.

Every request needs `Authorization: Bearer <access token>`, or comes over TLS with a certificate that core.toml knows; every answer but the
OpenAPI document is for whoever asked (`Cache-Control: no-store`). Errors are one JSON object with `message`, `code`, `statusCode`, `href`
and `details`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import msgspec
import structlog
from cryptography import x509
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Mount, Route

from core.control.access import READ, Access, Principal, Scope
from core.control.control import Change
from core.control.fields import Invalid, object_of
from core.control.io.writer import ConfigWriter
from core.control.openapi import document
from core.control.pipelines import shows_password
from core.mappings import Schemas
from relay.model.errors import HELP, RelayError
from relay.model.limits import CoreLimits
from relay.model.stats import ACCOUNT_SCHEMA, APP_SCHEMA, Query, shape
from relay.model.stats import asked as stats_asked
from relay.runtime.tls import SpiffeId

log = structlog.get_logger("core.control")

MOST_AUDIT = 1_000
MOST_CHANNELS = 1_000
MOST_REVOCATIONS = 1_000
MOST_STATS = 1_000
SCHEMA_S = 5.0
"""How long a preview waits for Schema Registry."""
WITHOUT_SECRETS = "x-tidegate-secrets"
"""With `none` the request is answered as if its token had no scope `secrets`: what is not needed is not sent."""
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
_WITHOUT_BODY = ("/revoke", "/rotate", "/pause", "/resume")
_HTTP_CODES = {404: 40400, 405: 40500, 413: 40009, 503: 50320}


@dataclass(frozen=True, slots=True)
class Call:
    """One request: who asks, from where, with what."""

    request: Request
    who: Principal
    source: str
    body: dict[str, Any]

    def __getitem__(self, name: str) -> str:
        """A part of the path."""
        return str(self.request.path_params[name])


Handler = Callable[[Call], Awaitable[Response]]


class Running(Protocol):
    """What the API shows of the core beside what is configured."""

    @property
    def node(self) -> str: ...

    async def channels(self, app: str, prefix: str, after: str, limit: int) -> list[dict[str, Any]]:
        """Channels that are open or have attachments, by name, with their occupancy. Raises: RelayError 50320."""
        ...

    async def stats(self, apps: Sequence[str], query: Query) -> list[tuple[str, list[int]]]:
        """The intervals that a query finds of these apps together. Raises: RelayError 50320."""
        ...

    async def cluster(self, authorization: str) -> dict[str, Any]:
        """`authorization` is what to show other cores."""
        ...

    async def schemas(self) -> Schemas | None:
        """None: no Schema Registry is configured."""
        ...


class ControlApi:
    """The routes. `writer` gives None until `tidegate.config` has been read."""

    def __init__(self, writer: Callable[[], ConfigWriter | None], limits: CoreLimits, running: Running) -> None:
        self._find = writer
        self._limits = limits
        self._core = running
        self._running = 0

    def routes(self) -> list[BaseRoute]:
        app = Starlette(
            routes=[
                Route("/openapi.json", _openapi),
                *(Route(path, self._serve(methods), methods=[*methods]) for path, methods in self._table().items()),
            ],
            exception_handlers={HTTPException: http_error},
        )
        # A sub-application of its own: its errors have a shape of their own.
        return [Mount("/v1", app), Mount("/api/v1", app)]

    def _table(self) -> dict[str, dict[str, Handler]]:
        return {
            "/me": {"GET": self._me},
            "/me/accounts": {"GET": self._accounts},
            "/accounts/{account}/apps": {"GET": self._apps, "POST": self._create_app},
            "/apps/{app}": {"PATCH": self._change_app, "DELETE": self._delete_app},
            "/apps/{app}/keys": {"GET": self._keys, "POST": self._create_key},
            "/apps/{app}/keys/{key}": {"PATCH": self._change_key},
            "/apps/{app}/keys/{key}/revoke": {"POST": self._revoke_key},
            "/apps/{app}/keys/{key}/rotate": {"POST": self._rotate_key},
            "/apps/{app}/revocations": {"GET": self._revocations, "POST": self._create_revocation},
            "/apps/{app}/namespaces": {"GET": self._namespaces, "POST": self._create_namespace},
            "/apps/{app}/namespaces/{namespace}": {"PATCH": self._change_namespace, "DELETE": self._delete_namespace},
            "/apps/{app}/rules": {"GET": self._rules, "POST": self._create_rule},
            "/apps/{app}/rules/{rule}": {"GET": self._rule, "PATCH": self._change_rule, "DELETE": self._delete_rule},
            "/apps/{app}/mappings": {"GET": self._mappings, "POST": self._create_mapping},
            "/apps/{app}/mappings/{mapping}": {
                "GET": self._mapping,
                "PATCH": self._change_mapping,
                "DELETE": self._delete_mapping,
            },
            "/apps/{app}/mappings/{mapping}/pause": {"POST": self._pause_mapping},
            "/apps/{app}/mappings/{mapping}/resume": {"POST": self._resume_mapping},
            "/apps/{app}/mappings/{mapping}/seek": {"POST": self._seek_mapping},
            "/apps/{app}/queues": {"GET": self._queues},
            "/apps/{app}/preview/rules": {"POST": self._preview_rules},
            "/apps/{app}/preview/mappings": {"POST": self._preview_mappings},
            "/apps/{app}/keys/{key}/can": {"GET": self._can},
            "/apps/{app}/channels": {"GET": self._channels},
            "/apps/{app}/stats": {"GET": self._app_stats},
            "/accounts/{account}/stats": {"GET": self._account_stats},
            "/cluster": {"GET": self._cluster},
            "/tokens": {"GET": self._tokens, "POST": self._create_token},
            "/tokens/{token}": {"DELETE": self._revoke_token},
            "/audit": {"GET": self._audit},
        }

    # --- one request ---------------------------------------------------------------------------------------------------------------------

    def _serve(self, methods: dict[str, Handler]) -> Callable[[Request], Awaitable[Response]]:
        async def serve(request: Request) -> Response:
            handler = methods["GET" if request.method == "HEAD" else request.method]
            if self._running >= self._limits.control_requests:
                return refusal(RelayError(50004, "Too many requests of the Control API at once; try again"))
            self._running += 1
            call = None
            try:
                call = await self._call(request)
                return await handler(call)
            except RelayError as error:
                if call is not None and error.info.status_code == 403:
                    who, path = call.who, request.scope["path"]
                    log.warning(
                        "request refused", method=request.method, path=path, by=who.id, of=who.type, source=call.source, code=error.code
                    )
                return refusal(error)
            except ClientDisconnect:
                return Response(status_code=400)
            except Exception as error:
                # What the request was about may be in the exception's text, so only its kind is told.
                log.error("a request of the Control API failed", method=request.method, error=type(error).__name__)  # noqa: TRY400
                return refusal(RelayError(50000, "Internal error"))
            finally:
                self._running -= 1

        return serve

    async def _call(self, request: Request) -> Call:
        """Raises: RelayError."""
        if self._find() is None:
            raise RelayError(50320, "The core is starting; try again")
        who = self._principal(request)
        takes_body = request.method == "PATCH" or (request.method == "POST" and not request.url.path.endswith(_WITHOUT_BODY))
        body = await self._body(request) if takes_body else {}
        return Call(request, _as_asked(request, who), request.client.host if request.client is not None else "", body)

    def _principal(self, request: Request) -> Principal:
        """Raises: RelayError 40100."""
        return principal_of(request, self._writer.control.access, self._writer.now_ms())

    async def _body(self, request: Request) -> dict[str, Any]:
        """Raises: RelayError 40009, 40001; Invalid."""
        content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        found = bytearray()
        async for part in request.stream():
            found += part
            if len(found) > self._limits.control_body_bytes:
                raise RelayError(40009, f"The body is larger than {self._limits.control_body_bytes} bytes")
        if content_type != "application/json":
            raise RelayError(40013, "The body must be application/json", 415)
        return object_of(bytes(found))

    @property
    def _writer(self) -> ConfigWriter:
        writer = self._find()
        assert writer is not None, "asked before"
        return writer

    async def _look(self, call: Call, *scopes: Scope) -> None:
        """May read, and sees whatever anybody has been told is done: also that the token has been revoked. Raises: RelayError."""
        call.who.require(*(scopes or READ))
        await self._writer.catch_up()
        self._principal(call.request)

    async def _change(self, call: Call, plan: Callable[[], Change]) -> Response:
        def still() -> Change:
            self._principal(call.request)
            return plan()

        change = await self._writer.change(still, call.who, call.source)
        return _answer(change.answer(), change.status)

    # --- me, apps ------------------------------------------------------------------------------------------------------------------------

    async def _me(self, call: Call) -> Response:
        return _answer(self._writer.control.me(call.who))

    async def _accounts(self, call: Call) -> Response:
        account, name = self._writer.control.account
        return _answer([{"id": account, "name": name}])

    async def _apps(self, call: Call) -> Response:
        self._writer.control.check_account(call["account"])
        await self._look(call)
        return _answer(self._writer.control.apps())

    async def _create_app(self, call: Call) -> Response:
        call.who.require("security")
        control = self._writer.control
        control.check_account(call["account"])
        return await self._change(call, lambda: control.create_app(call.body, self._writer.now_ms()))

    async def _change_app(self, call: Call) -> Response:
        call.who.require("security")
        return await self._change(call, lambda: self._writer.control.change_app(call["app"], call.body, self._writer.now_ms()))

    async def _delete_app(self, call: Call) -> Response:
        call.who.require("security")
        return await self._change(call, lambda: self._writer.control.delete_app(call["app"], self._writer.now_ms()))

    # --- keys ----------------------------------------------------------------------------------------------------------------------------

    async def _keys(self, call: Call) -> Response:
        await self._look(call)
        secrets = call.who.shown_secrets
        keys = self._writer.control.keys(call["app"], secrets=secrets)
        if any(key["key"] is not None for key in keys):
            await self._writer.note_reading("key.list", {"app": call["app"]}, call.who, call.source)
        return _answer(keys)

    async def _create_key(self, call: Call) -> Response:
        call.who.require("security")
        secrets = call.who.shown_secrets
        return await self._change(
            call, lambda: self._writer.control.create_key(call["app"], call.body, self._writer.now_ms(), secrets=secrets)
        )

    async def _change_key(self, call: Call) -> Response:
        call.who.require("security")
        secrets = call.who.shown_secrets
        return await self._change(
            call, lambda: self._writer.control.change_key(call["app"], call["key"], call.body, self._writer.now_ms(), secrets=secrets)
        )

    async def _rotate_key(self, call: Call) -> Response:
        call.who.require("security")
        secrets = call.who.shown_secrets
        return await self._change(
            call, lambda: self._writer.control.rotate_key(call["app"], call["key"], self._writer.now_ms(), secrets=secrets)
        )

    async def _revoke_key(self, call: Call) -> Response:
        call.who.require("security")
        return await self._change(call, lambda: self._writer.control.revoke_key(call["app"], call["key"], self._writer.now_ms()))

    async def _revocations(self, call: Call) -> Response:
        await self._look(call)
        query = call.request.query_params
        limit = _limit(query.get("limit", "100"), MOST_REVOCATIONS)
        control, more = self._writer.control, {name: query.get(name, "") for name in ("before", "target")}
        return _answer(control.revocations(call["app"], self._writer.now_ms(), limit=limit, **more))

    async def _create_revocation(self, call: Call) -> Response:
        call.who.require("security")
        return await self._change(call, lambda: self._writer.control.create_revocation(call["app"], call.body, self._writer.now_ms()))

    # --- namespaces ----------------------------------------------------------------------------------------------------------------------

    async def _namespaces(self, call: Call) -> Response:
        await self._look(call)
        return _answer(self._writer.control.namespaces(call["app"]))

    async def _create_namespace(self, call: Call) -> Response:
        call.who.require("operator")
        return await self._change(call, lambda: self._writer.control.create_namespace(call["app"], call.body, self._writer.now_ms()))

    async def _change_namespace(self, call: Call) -> Response:
        call.who.require("operator")
        control = self._writer.control
        return await self._change(call, lambda: control.change_namespace(call["app"], call["namespace"], call.body, self._writer.now_ms()))

    async def _delete_namespace(self, call: Call) -> Response:
        call.who.require("operator")
        control = self._writer.control
        return await self._change(call, lambda: control.delete_namespace(call["app"], call["namespace"], self._writer.now_ms()))

    # --- rules, mappings -----------------------------------------------------------------------------------------------------------------

    async def _rules(self, call: Call) -> Response:
        await self._look(call)
        rules = self._writer.pipelines.rules(call["app"], secrets=call.who.shown_secrets)
        if any(map(shows_password, rules)):
            await self._writer.note_reading("rule.list", {"app": call["app"]}, call.who, call.source)
        return _answer(rules)

    async def _rule(self, call: Call) -> Response:
        await self._look(call)
        rule = self._writer.pipelines.rule(call["app"], call["rule"], secrets=call.who.shown_secrets)
        if shows_password(rule):
            await self._writer.note_reading("rule.read", {"app": call["app"], "rule": call["rule"]}, call.who, call.source)
        return _answer(rule)

    async def _create_rule(self, call: Call) -> Response:
        call.who.require("operator")
        found, secrets = self._writer.pipelines, call.who.shown_secrets
        return await self._change(call, lambda: found.create_rule(call["app"], call.body, self._writer.now_ms(), secrets=secrets))

    async def _change_rule(self, call: Call) -> Response:
        call.who.require("operator")
        found, secrets = self._writer.pipelines, call.who.shown_secrets
        return await self._change(
            call, lambda: found.change_rule(call["app"], call["rule"], call.body, self._writer.now_ms(), secrets=secrets)
        )

    async def _delete_rule(self, call: Call) -> Response:
        call.who.require("operator")
        found = self._writer.pipelines
        return await self._change(call, lambda: found.delete_rule(call["app"], call["rule"], self._writer.now_ms()))

    async def _mappings(self, call: Call) -> Response:
        await self._look(call)
        return _answer(self._writer.pipelines.mappings(call["app"]))

    async def _mapping(self, call: Call) -> Response:
        await self._look(call)
        return _answer(self._writer.pipelines.mapping(call["app"], call["mapping"]))

    async def _create_mapping(self, call: Call) -> Response:
        call.who.require("operator")
        found = self._writer.pipelines
        return await self._change(call, lambda: found.create_mapping(call["app"], call.body, self._writer.now_ms()))

    async def _change_mapping(self, call: Call) -> Response:
        call.who.require("operator")
        found = self._writer.pipelines
        return await self._change(call, lambda: found.change_mapping(call["app"], call["mapping"], call.body, self._writer.now_ms()))

    async def _delete_mapping(self, call: Call) -> Response:
        call.who.require("operator")
        found = self._writer.pipelines
        return await self._change(call, lambda: found.delete_mapping(call["app"], call["mapping"], self._writer.now_ms()))

    async def _pause_mapping(self, call: Call) -> Response:
        return await self._hold_mapping(call, paused=True)

    async def _resume_mapping(self, call: Call) -> Response:
        return await self._hold_mapping(call, paused=False)

    async def _hold_mapping(self, call: Call, *, paused: bool) -> Response:
        call.who.require("operator")
        found = self._writer.pipelines
        return await self._change(call, lambda: found.pause_mapping(call["app"], call["mapping"], self._writer.now_ms(), paused=paused))

    async def _seek_mapping(self, call: Call) -> Response:
        call.who.require("operator")
        found = self._writer.pipelines
        return await self._change(call, lambda: found.seek_mapping(call["app"], call["mapping"], call.body, self._writer.now_ms()))

    async def _queues(self, call: Call) -> Response:
        """There are none; the public tools list them."""
        await self._look(call)
        self._writer.control.check_app(call["app"])
        return _answer([])

    # --- what the core does, and would do ------------------------------------------------------------------------------------------------

    async def _preview_rules(self, call: Call) -> Response:
        await self._look(call)
        return _answer(self._writer.pipelines.preview_rules(call["app"], call.body, site=self._core.node, now_ms=self._writer.now_ms()))

    async def _preview_mappings(self, call: Call) -> Response:
        await self._look(call)
        pipelines, schemas = self._writer.pipelines, await self._core.schemas()
        until = time.monotonic() + SCHEMA_S
        while True:
            found = pipelines.preview_mappings(call["app"], call.body, now_ms=self._writer.now_ms(), schemas=schemas)
            if time.monotonic() > until or not any(each.get("then") == "wait" for each in found):
                return _answer(found)
            await asyncio.sleep(0.05)

    async def _can(self, call: Call) -> Response:
        await self._look(call)
        query = call.request.query_params
        return _answer(self._writer.control.can(call["app"], call["key"], query.get("operation", ""), query.get("channel", "")))

    async def _channels(self, call: Call) -> Response:
        await self._look(call)
        self._writer.control.check_app(call["app"])
        query = call.request.query_params
        limit = _limit(query.get("limit", "100"), MOST_CHANNELS)
        return _answer(await self._core.channels(call["app"], query.get("prefix", ""), query.get("after", ""), limit))

    async def _app_stats(self, call: Call) -> Response:
        await self._look(call)
        self._writer.control.check_app(call["app"])
        return await self._stats(call, [call["app"]], {"appId": call["app"]}, APP_SCHEMA)

    async def _account_stats(self, call: Call) -> Response:
        self._writer.control.check_account(call["account"])
        await self._look(call)
        apps = [app["id"] for app in self._writer.control.apps()]
        return await self._stats(call, apps, {"accountId": call["account"]}, ACCOUNT_SCHEMA)

    async def _stats(self, call: Call, apps: Sequence[str], owner: dict[str, str], schema: str) -> Response:
        params, now_ms = call.request.query_params, self._writer.now_ms()
        query = stats_asked(params, _limit(params.get("limit", "100"), MOST_STATS), now_ms)
        found = await self._core.stats(apps, query)
        return _answer([shape(owner, interval, values, now_ms, schema=schema) for interval, values in found])

    async def _cluster(self, call: Call) -> Response:
        call.who.require(*READ)
        return _answer(await self._core.cluster(call.request.headers.get("authorization", "")))

    # --- access tokens, audit ------------------------------------------------------------------------------------------------------------

    async def _tokens(self, call: Call) -> Response:
        await self._look(call, "security")
        return _answer(self._writer.control.tokens(self._writer.now_ms()))

    async def _create_token(self, call: Call) -> Response:
        """The answer shows the token, which is a secret: so it takes both scopes."""
        call.who.require("security")
        call.who.require("secrets")
        return await self._change(call, lambda: self._writer.control.create_token(call.who, call.body, self._writer.now_ms()))

    async def _revoke_token(self, call: Call) -> Response:
        call.who.require("security")
        return await self._change(call, lambda: self._writer.control.revoke_token(call["token"], self._writer.now_ms()))

    async def _audit(self, call: Call) -> Response:
        await self._look(call, "security")
        query = call.request.query_params
        limit = _limit(query.get("limit", "100"), MOST_AUDIT)
        found = self._writer.control.audit.newest(
            limit, before=query.get("before", ""), app=query.get("app", ""), action=query.get("action", "")
        )
        return _answer(found)


def principal_of(request: Request, access: Access, now_ms: int) -> Principal:
    """Whose access token comes with a request, or, without any, whose client certificate. Raises: RelayError 40100."""
    given = request.headers.getlist("authorization")
    scheme, _, credential = given[0].partition(" ") if len(given) == 1 else ("", "", "")
    who = access.bearer(credential.strip(), now_ms) if scheme.lower() == "bearer" else None
    # Browsers show a certificate with whatever a page of anybody asks of them; a token they do not.
    if who is None and not given and not any(name in request.headers for name in ("origin", "sec-fetch-site")):
        who = access.certificate(_certificate_names(request.scope.get("state", {}).get("tls")))
    if who is None:
        raise RelayError(40100, "Access denied", 401)
    return who


def _as_asked(request: Request, who: Principal) -> Principal:
    """Without the scope `secrets`, if the request says so."""
    return who._replace(scopes=who.scopes - {"secrets"}) if request.headers.get(WITHOUT_SECRETS) == "none" else who


def _limit(given: str, most: int) -> int:
    """Raises: Invalid."""
    if not given.isascii() or not given.isdecimal() or len(given) > 4 or not 1 <= int(given) <= most:
        raise Invalid({"limit": [f"must be a whole number from 1 to {most}"]})
    return int(given)


def _certificate_names(tls: Any) -> list[str]:
    """The names (URI, DNS, mail) of the certificate that the other end of the connection has presented and the listener has checked."""
    der = tls.getpeercert(True) if tls is not None else None
    if not isinstance(der, bytes):
        return []
    try:
        names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, ValueError):
        return []
    kinds = (x509.UniformResourceIdentifier, x509.DNSName, x509.RFC822Name)
    found = [str(name) for kind in kinds for name in names.get_values_for_type(kind)]
    # That of an edge or a core is nobody's here, whatever else it says.
    return [] if any(SpiffeId.parse(name) is not None for name in found) else found


def _answer(content: Any, status: int = 200) -> Response:
    """No content is an empty body."""
    if content is None:
        return Response(status_code=status, headers=_HEADERS)
    return Response(msgspec.json.encode(content), status, headers=_HEADERS, media_type="application/json")


def refusal(error: RelayError) -> Response:
    info = error.info
    return _problem(info.code, info.status_code, info.message, error.details if isinstance(error, Invalid) else None)


def _problem(code: int, status: int, message: str, details: Any = None, headers: dict[str, str] | None = None) -> Response:
    content = {"message": message, "code": code, "statusCode": status, "href": f"{HELP}{code}", "details": details}
    more = {"www-authenticate": "Bearer"} if status == 401 else {}
    return Response(msgspec.json.encode(content), status, headers={**_HEADERS, **more, **(headers or {})}, media_type="application/json")


async def http_error(_: Request, error: Exception) -> Response:
    """What the router itself refuses: paths and methods that are not there."""
    assert isinstance(error, HTTPException)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    return _problem(_HTTP_CODES.get(error.status_code, 40000), error.status_code, error.detail, headers=headers)


async def _openapi(_: Request) -> Response:
    return Response(msgspec.json.encode(document()), media_type="application/json")
