"""`tidegate apps|keys|namespaces|tokens|audit|can`: the Control API from the command line."""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from core.control.can import as_data_plane, closed, granted, meet, within
from tidegate.control import ControlClient, ControlError, difference, show, when
from tidegate.mappings_cli import mappings_app
from tidegate.rules_cli import rules_app

Url = Annotated[str | None, typer.Option(envvar="TIDEGATE_CONTROL_URL", help="Admin address of a core. Without: the `tidegate dev` here.")]
TokenFile = Annotated[Path | None, typer.Option(help="File with the access token; or set $TIDEGATE_ACCESS_TOKEN.")]
Ca = Annotated[Path | None, typer.Option(envvar="TIDEGATE_CONTROL_CA", help="Authority of the admin listener's certificate.")]
Certificate = Annotated[Path | None, typer.Option(envvar="TIDEGATE_CONTROL_CERTIFICATE", help="Client certificate, in place of a token.")]
PrivateKey = Annotated[Path | None, typer.Option(envvar="TIDEGATE_CONTROL_PRIVATE_KEY", help="Its key.")]
AsJson = Annotated[bool, typer.Option("--json", help="What the Control API answers, in place of a table.")]
App = Annotated[str, typer.Argument(help="The id of the app.")]
KeyName = Annotated[str, typer.Argument(metavar="APP.KEY", help="The name of the key.")]
CapabilityText = Annotated[str | None, typer.Option(help='JSON, as in `{"chat:*":["subscribe"]}`.')]
Revocable = Annotated[bool | None, typer.Option("--revocable-tokens/--no-revocable-tokens", help="Whether its tokens may be revoked.")]


def _connect(
    context: typer.Context,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
) -> None:
    context.obj = (url, token_file, ca, certificate, private_key)


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, callback=_connect)


apps_app = _group("Apps: tenants with keys, namespaces and rules of their own.")
keys_app = _group("API keys of an app.")
revocations_app = _group("Revoked tokens of an app.")
namespaces_app = _group("Properties of channels by the first part of their name.")
tokens_app = _group("Access tokens of the Control API.")


def fail(reason: object) -> NoReturn:
    """One line, and exit code 2."""
    typer.echo(f"tidegate: {reason}", err=True)
    raise typer.Exit(2)


def client(url: str | None, token_file: Path | None, ca: Path | None, certificate: Path | None, private_key: Path | None) -> ControlClient:
    import os

    from tidegate.operators import Unfound, dev_access_token, find_cores

    try:
        token = token_file.read_text().strip() if token_file is not None else os.environ.get("TIDEGATE_ACCESS_TOKEN") or None
        if url is None:
            url = find_cores([], [], None)[0]
            token = token or dev_access_token(None)
        return ControlClient(url, token, ca, certificate, private_key)
    except Unfound as error:
        fail(f"{str(error).partition(':')[0]}: name a core with --url http://HOST:PORT")
    except (OSError, ControlError) as error:
        fail(error)


def _ask(context: typer.Context, method: str, *path: str, body: Any = None, query: dict[str, str] | None = None) -> Any:
    try:
        return client(*context.obj).ask(method, *path, body=body, query=query)
    except ControlError as error:
        fail(error)


def _say(content: Any, as_json: bool, title: str, columns: dict[str, str]) -> None:
    """`columns`: heading → member; `created` and the like are shown as times."""
    if as_json:
        typer.echo(json.dumps(content))
        return
    from rich.console import Console

    # A secret that has just been made is to be copied: on a line of its own, which no table folds.
    fresh = {} if isinstance(content, list) else {member: content[member] for member in ("key", "token") if content.get(member)}
    columns = {heading: member for heading, member in columns.items() if member not in fresh}
    rows = content if isinstance(content, list) else [content]
    show(
        Console(width=None if sys.stdout.isatty() else 200),
        title,
        [*columns],
        [[_cell(row, member) for member in columns.values()] for row in rows],
    )
    for member, secret in fresh.items():
        typer.echo(f"{member}: {secret}")


def _cell(row: dict[str, Any], member: str) -> object:
    value = row[member]
    if member in ("created", "modified", "expires", "issuedBefore", "appliesAt"):
        return when(value)
    if member == "live":
        return None if value is None else value["state"]
    if member == "status" and isinstance(value, int):
        return "revoked" if value else "enabled"
    return value


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _capability(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        fail("--capability: not JSON")


def _key_body(name: str | None, capability: str | None, revocable_tokens: bool | None) -> dict[str, Any]:
    return _given(name=name, capability=_capability(capability), revocableTokens=revocable_tokens)


def _key(name: str) -> tuple[str, str]:
    app, dot, key = name.partition(".")
    if not dot or not app or not key:
        fail(f"a key is named APP.KEY, not {name!r}")
    return app, key


# --- apps --------------------------------------------------------------------------------------------------------------------------------

_APP = {"id": "id", "name": "name", "status": "status", "TLS only": "tlsOnly", "created": "created", "modified": "modified"}
Status = Annotated[str | None, typer.Option(help="`enabled` or `disabled`.")]
TlsOnly = Annotated[bool | None, typer.Option("--tls-only/--no-tls-only", help="Refuse clients without TLS.")]


def _account(context: typer.Context) -> str:
    return str(_ask(context, "GET", "me")["account"]["id"])


@apps_app.command("list")
def list_apps(context: typer.Context, as_json: AsJson = False) -> None:
    """All apps, those of core.toml first."""
    _say(_ask(context, "GET", "accounts", _account(context), "apps"), as_json, "Apps", _APP)


@apps_app.command("create")
def create_app(
    context: typer.Context, name: Annotated[str, typer.Argument(help="Its name.")], tls_only: TlsOnly = None, as_json: AsJson = False
) -> None:
    """Make an app."""
    body = _given(name=name, tlsOnly=tls_only)
    _say(_ask(context, "POST", "accounts", _account(context), "apps", body=body), as_json, "App", _APP)


@apps_app.command("change")
def change_app(
    context: typer.Context,
    app: App,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    status: Status = None,
    tls_only: TlsOnly = None,
    as_json: AsJson = False,
) -> None:
    """Rename, disable or enable an app. Clients of a disabled app are disconnected."""
    _say(_ask(context, "PATCH", "apps", app, body=_given(name=name, status=status, tlsOnly=tls_only)), as_json, "App", _APP)


@apps_app.command("delete")
def delete_app(context: typer.Context, app: App, yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False) -> None:
    """Delete an app with all its keys. Its clients are disconnected."""
    if not yes:
        typer.confirm(f"Delete {app} and all its keys?", abort=True)
    _ask(context, "DELETE", "apps", app)


# --- keys --------------------------------------------------------------------------------------------------------------------------------

_KEY = {"id": "id", "name": "name", "status": "status", "revocable tokens": "revocableTokens", "capability": "capability"} | {
    "modified": "modified",
    "key": "key",
}


@keys_app.command("list")
def list_keys(context: typer.Context, app: App, as_json: AsJson = False) -> None:
    """All keys of an app. Their secrets are shown to tokens with the scope `secrets`, and that goes into the audit."""
    found = _ask(context, "GET", "apps", app, "keys")
    _say(found, as_json, f"Keys of {app}", _KEY)


@keys_app.command("create")
def create_key(
    context: typer.Context,
    app: App,
    capability: Annotated[str, typer.Option(help='What it may do: JSON, as in `{"chat:*":["subscribe"]}`.')],
    name: Annotated[str, typer.Option(help="What it is for.")] = "",
    revocable_tokens: Revocable = None,
    as_json: AsJson = False,
) -> None:
    """Make a key."""
    body = _key_body(name, capability, revocable_tokens)
    _say(_ask(context, "POST", "apps", app, "keys", body=body), as_json, "Key", _KEY)


@keys_app.command("change")
def change_key(
    context: typer.Context,
    key: KeyName,
    name: Annotated[str | None, typer.Option(help="Another name.")] = None,
    capability: CapabilityText = None,
    revocable_tokens: Revocable = None,
    as_json: AsJson = False,
) -> None:
    """Change a key. Who is connected by it and may do less now is sent away to connect again."""
    app, key_id = _key(key)
    body = _key_body(name, capability, revocable_tokens)
    _say(_ask(context, "PATCH", "apps", app, "keys", key_id, body=body), as_json, "Key", _KEY)


@keys_app.command("rotate")
def rotate_key(context: typer.Context, key: KeyName, as_json: AsJson = False) -> None:
    """Give a key another secret. The old one, and tokens signed with it, count no more from then on."""
    app, key_id = _key(key)
    _say(_ask(context, "POST", "apps", app, "keys", key_id, "rotate"), as_json, "Key", _KEY)


@keys_app.command("revoke")
def revoke_key(context: typer.Context, key: KeyName) -> None:
    """Revoke a key for good. Its clients are disconnected within two seconds."""
    app, key_id = _key(key)
    _ask(context, "POST", "apps", app, "keys", key_id, "revoke")


# --- revoked tokens ----------------------------------------------------------------------------------------------------------------------

_REVOCATION = {name: name for name in ("id", "key", "targets", "status")} | {
    "issued before": "issuedBefore",
    "applies at": "appliesAt",
    "expires": "expires",
}
Named = Annotated[list[str] | None, typer.Option(help="Repeatable.")]


@revocations_app.command("list")
def list_revocations(
    context: typer.Context,
    app: App,
    target: Annotated[str | None, typer.Option(help="Of this target only, as in `clientId:bob`.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many, newest first.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Revocations of the last 25 hours, whoever made them: until none of their tokens can be left."""
    found = _ask(context, "GET", "apps", app, "revocations", query=_given(target=target, limit=str(limit)))
    _say(found, as_json, f"Revoked tokens of {app}", _REVOCATION)


@revocations_app.command("create")
def create_revocation(
    context: typer.Context,
    key: KeyName,
    client_id: Named = None,
    channel: Named = None,
    revocation_key: Named = None,
    reauth_margin: Annotated[bool, typer.Option("--reauth-margin", help="Clients have 30 seconds to bring other tokens.")] = False,
    as_json: AsJson = False,
) -> None:
    """Revoke what tokens a key has issued until now, by their clientId, by a resource of their capability, or by their revocation key.

    Example: `tidegate revocations create xY3fQ9.aB3dE5 --client-id bob`
    """
    app, key_id = _key(key)
    given = {"clientId": client_id, "channel": channel, "revocationKey": revocation_key}
    targets = [f"{kind}:{name}" for kind, names in given.items() for name in names or ()]
    if not targets:
        fail("give at least one of --client-id, --channel and --revocation-key")
    body = {"key": key_id, "targets": targets, "allowReauthMargin": reauth_margin}
    _say(_ask(context, "POST", "apps", app, "revocations", body=body), as_json, "Revoked tokens", _REVOCATION)


# --- namespaces --------------------------------------------------------------------------------------------------------------------------

_NAMESPACE = {
    "id": "id",
    "authenticated": "authenticated",
    "TLS only": "tlsOnly",
    "without effect": "withoutEffect",
    "modified": "modified",
}
NamespaceId = Annotated[str, typer.Argument(metavar="NAMESPACE", help="The first part of channel names.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A property, as in `persisted=true`. Repeatable.")]


def _properties(given: list[str] | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in given or ():
        name, equals, value = each.partition("=")
        if not equals:
            fail(f"--set takes NAME=VALUE, not {each!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


@namespaces_app.command("list")
def list_namespaces(context: typer.Context, app: App, as_json: AsJson = False) -> None:
    """All namespaces of an app."""
    _say(_ask(context, "GET", "apps", app, "namespaces"), as_json, f"Namespaces of {app}", _NAMESPACE)


@namespaces_app.command("create")
def create_namespace(context: typer.Context, app: App, namespace: NamespaceId, properties: Set = None, as_json: AsJson = False) -> None:
    """Make a namespace."""
    body = {**_properties(properties), "id": namespace}
    _say(_ask(context, "POST", "apps", app, "namespaces", body=body), as_json, "Namespace", _NAMESPACE)


@namespaces_app.command("change")
def change_namespace(context: typer.Context, app: App, namespace: NamespaceId, properties: Set = None, as_json: AsJson = False) -> None:
    """Change properties of a namespace."""
    found = _ask(context, "PATCH", "apps", app, "namespaces", namespace, body=_properties(properties))
    _say(found, as_json, "Namespace", _NAMESPACE)


@namespaces_app.command("delete")
def delete_namespace(context: typer.Context, app: App, namespace: NamespaceId) -> None:
    """Delete a namespace."""
    _ask(context, "DELETE", "apps", app, "namespaces", namespace)


# --- rules, mappings ---------------------------------------------------------------------------------------------------------------------

_RULE = {"id": "id", "status": "status", "source": "source", "target": "target"} | {
    "running": "running",
    "state": "live",
    "modified": "modified",
}
_MAPPING = {"id": "id", "status": "status", "paused": "paused", "topics": "topics", "pattern": "topicPattern", "channel": "channel"} | {
    "running": "running",
    "modified": "modified",
}
Content = Annotated[str, typer.Option("--from", metavar="FILE", help="File with its JSON; `-`: standard input.")]
Id = Annotated[str, typer.Argument(help="Its id.")]


def _content(path: str) -> Any:
    try:
        found = json.loads(sys.stdin.read() if path == "-" else Path(path).read_text())
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    except ValueError:
        fail(f"{path}: not JSON")
    if not isinstance(found, dict):
        fail(f"{path}: must be a JSON object")
    return found


def add_commands(group: typer.Typer, kind: str, columns: dict[str, str]) -> None:
    """`list`, `show`, `create`, `change` and `delete` of rules or mappings."""
    many = f"{kind}s"
    group.callback()(_connect)

    @group.command("list", help=f"All {many} of an app, those of core.toml first. `running`: whether the core that answers runs it so.")
    def list_them(context: typer.Context, app: App, as_json: AsJson = False) -> None:
        _say(_ask(context, "GET", "apps", app, many), as_json, f"{many.capitalize()} of {app}", columns)

    @group.command("show", help=f"One {kind}, as JSON.")
    def show_one(context: typer.Context, app: App, name: Id) -> None:
        typer.echo(json.dumps(_ask(context, "GET", "apps", app, many, name), indent=2))

    @group.command("create", help=f"Make a {kind}. `running` in the list says whether the core that answers has it in force.")
    def create(context: typer.Context, app: App, content: Content = "-", as_json: AsJson = False) -> None:
        _say(_ask(context, "POST", "apps", app, many, body=_content(content)), as_json, kind.capitalize(), columns)

    @group.command(
        "change",
        help=f"Change what the JSON names of a {kind}. `running` in the list says whether the core that answers has it in force so.",
    )
    def change(context: typer.Context, app: App, name: Id, content: Content = "-", as_json: AsJson = False) -> None:
        # The public API wants the type of a rule with every change.
        body = ({"ruleType": "kafka"} if kind == "rule" else {}) | _content(content)
        _say(_ask(context, "PATCH", "apps", app, many, name, body=body), as_json, kind.capitalize(), columns)

    @group.command("delete", help=f"Delete a {kind}. Within two seconds no core runs it.")
    def delete(context: typer.Context, app: App, name: Id) -> None:
        _ask(context, "DELETE", "apps", app, many, name)


add_commands(rules_app, "rule", _RULE)
add_commands(mappings_app, "mapping", _MAPPING)


@mappings_app.command("pause")
def pause_mapping(context: typer.Context, app: App, name: Id, as_json: AsJson = False) -> None:
    """Hold a mapping on all cores: it reads nothing, and keeps its positions."""
    _say(_ask(context, "POST", "apps", app, "mappings", name, "pause"), as_json, "Mapping", _MAPPING)


@mappings_app.command("resume")
def resume_mapping(context: typer.Context, app: App, name: Id, as_json: AsJson = False) -> None:
    """Let a mapping read again, from where it was held."""
    _say(_ask(context, "POST", "apps", app, "mappings", name, "resume"), as_json, "Mapping", _MAPPING)


@mappings_app.command("seek")
def seek_mapping(
    context: typer.Context,
    app: App,
    name: Id,
    to: Annotated[
        str | None, typer.Option(help="`earliest`, `latest`, or a time: `2026-11-23T14:00:00Z`, or milliseconds since 1970.")
    ] = None,
    topic: Annotated[str | None, typer.Option(help="Only this topic.")] = None,
    partition: Annotated[int | None, typer.Option(min=0, help="Only this partition of the topic.")] = None,
    offset: Annotated[int | None, typer.Option(min=0, help="In place of --to, with --topic and --partition.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a mapping go on elsewhere. What it has published already is published again if that lies behind.

    Example: `tidegate mappings seek APP ID --to earliest --topic orders`
    """
    body = _given(to=None if to is None else _position(to), topic=topic, partition=partition, offset=offset)
    _say(_ask(context, "POST", "apps", app, "mappings", name, "seek", body=body), as_json, "Mapping", _MAPPING)


def _position(text: str) -> str | int:
    """`earliest` and `latest` as they are, times in milliseconds since 1970."""
    if text in ("earliest", "latest"):
        return text
    if text.isascii() and text.isdigit():
        return int(text)
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        fail(f"--to takes earliest, latest or a time as in 2026-11-23T14:00:00Z, not {text!r}")
    return int(at.astimezone().timestamp() * 1000)


# --- access tokens -----------------------------------------------------------------------------------------------------------------------

_TOKEN = {"id": "id", "name": "name", "scopes": "scopes", "active": "active", "created": "created", "expires": "expires", "token": "token"}


@tokens_app.command("list")
def list_tokens(context: typer.Context, as_json: AsJson = False) -> None:
    """All access tokens, without their secrets."""
    _say(_ask(context, "GET", "tokens"), as_json, "Access tokens", _TOKEN)


@tokens_app.command("create")
def create_token(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Whose it is, or what for.")],
    scope: Annotated[list[str], typer.Option(help="`reader`, `operator`, `security` or `secrets`. Repeatable.")],
    days: Annotated[int | None, typer.Option(min=1, max=3_650, help="When it expires; never without.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make an access token. It is shown this once."""
    expires = None if days is None else int(time.time() * 1000) + days * 86_400_000
    body = {"name": name, "scopes": scope, "expires": expires}
    _say(_ask(context, "POST", "tokens", body=body), as_json, "Access token", _TOKEN)


@tokens_app.command("revoke")
def revoke_token(context: typer.Context, token: Annotated[str, typer.Argument(help="Its id.")]) -> None:
    """Revoke an access token for good."""
    _ask(context, "DELETE", "tokens", token)


# --- audit, can --------------------------------------------------------------------------------------------------------------------------


def audit(
    app: Annotated[str | None, typer.Option(help="Of this app only.")] = None,
    action: Annotated[str | None, typer.Option(help="Actions that begin so, as in `key.`")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many, newest first.")] = 50,
    as_json: AsJson = False,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
) -> None:
    """Show who changed what in the configuration, and who was shown secrets.

    Example: `tidegate audit --app xY3fQ9 --action key.`
    """
    try:
        query = _given(app=app, action=action, limit=str(limit))
        found = client(url, token_file, ca, certificate, private_key).ask("GET", "audit", query=query)
    except ControlError as error:
        fail(error)
    if as_json:
        typer.echo(json.dumps(found))
        return
    from rich.console import Console

    show(
        Console(width=None if sys.stdout.isatty() else 200),
        "Audit",
        ["when (UTC)", "who", "from", "what", "of", "outcome", "changed"],
        [
            [
                when(entry["at"]),
                f"{entry['by'].get('name') or entry['by'].get('id')} ({entry['by'].get('type')})",
                entry["source"],
                entry["action"],
                " ".join(f"{name}={value}" for name, value in entry["target"].items()),
                entry["outcome"],
                difference(entry["before"], entry["after"]),
            ]
            for entry in found
        ],
    )


def can(
    operation: Annotated[str, typer.Argument(help="As in a capability: `publish`, `subscribe`, `presence`, `history` …")],
    channel: Annotated[str, typer.Argument(help="The channel's name.")],
    key: Annotated[str | None, typer.Option(metavar="APP.KEY", help="A key, by its name: the Control API is asked.")] = None,
    token: Annotated[
        Path | None, typer.Option("--jwt-file", help="File with a JWT (`-`: standard input). Its key is asked for too.")
    ] = None,
    capability: CapabilityText = None,
    as_json: AsJson = False,
    url: Url = None,
    token_file: TokenFile = None,
    ca: Ca = None,
    certificate: Certificate = None,
    private_key: PrivateKey = None,
) -> None:
    """Say whether a key, a JWT or a capability may do an operation on a channel, and which line of which capability says so.

    Exit code 0 for yes, 1 for no. A JWT's signature and times are not looked at: this is about capabilities.

    Example: `tidegate can publish chat:lobby --key xY3fQ9.aB3dE5`
    """
    if [key, token, capability].count(None) != 2:
        fail("give one of --key, --jwt-file and --capability")
    try:
        asked, claimed, meets, nobody = [], None, True, False
        shut: list[str] = []
        if token is not None:
            key, claimed, client_id = _claims(token)
            nobody = client_id is None
            if claimed is not None:
                asked.append(granted("the token", claimed, operation, channel))
        if key is not None:
            app, key_id = _key(key)
            api = client(url, token_file, ca, certificate, private_key)
            found = {one["id"]: one for one in api.ask("GET", "apps", app, "keys", secrets=False)}
            if key_id not in found:
                fail(f"there is no key {key}")
            if found[key_id]["status"]:
                _verdict(False, [f"no: the key {key} is revoked"], as_json, [])
            keys = as_data_plane(found[key_id]["capability"])
            asked.append(granted(f"key {key}", keys, operation, channel))
            meets = claimed is None or meet(claimed, keys, operation, channel)
            namespaces = api.ask("GET", "apps", app, "namespaces")
            shut = [one["id"] for one in namespaces if one["authenticated"] and within(channel, one["id"])]
        else:
            asked.append(granted("the capability", _capability(capability), operation, channel))
    except (ControlError, ValueError) as error:
        fail(error)
    lines = [each.sentence(operation, channel) for each in asked]
    if not meets and all(each.yes for each in asked):
        lines.append("no: of the two lines neither lies within the other, so the token has nothing of both")
    lines += [closed(namespace, nobody=nobody) for namespace in shut]
    if shut and nobody:
        _verdict(False, lines, as_json, [])
    _verdict(meets and all(each.yes for each in asked), lines, as_json, [each.shape() for each in asked])


def _verdict(yes: bool, lines: list[str], as_json: bool, details: list[dict[str, Any]]) -> NoReturn:
    typer.echo(json.dumps({"permitted": yes, "because": details or lines}) if as_json else "\n".join(lines))
    raise typer.Exit(0 if yes else 1)


def _claims(path: Path) -> tuple[str, Any, str | None]:
    """The key that a JWT names, the capability that it asks for, and its clientId, if any."""
    import jwt

    try:
        text = (sys.stdin.read() if str(path) == "-" else path.read_text()).strip()
        key = jwt.get_unverified_header(text).get("kid")
        claims = jwt.decode(text, options={"verify_signature": False})
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    except jwt.PyJWTError:
        fail(f"{path}: not a JWT")
    if not isinstance(key, str):
        fail(f"{path}: the JWT names no key (kid)")
    return key, claims.get("x-ably-capability") or None, claims.get("x-ably-clientId")
