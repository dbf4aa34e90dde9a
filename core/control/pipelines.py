"""Rules and mappings as the Control API has them: JSON in the public API's words, checked by making what a core would run.

The words are kept as they were sent, so that what comes back compares equal to what went in; passwords are taken out and sealed. Rules
(`Pipelines.rules_to_run`) and mappings (`Pipelines.mappings_to_run`) take effect as they are read; each answer says whether the core that
answers has it in force (`running`). Whether a mapping is held, and where it was told to go on, is a record of its own
(`steering:<app>:<id>`).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import msgspec

from core.control.control import Change, Control, kept, missing, too_many
from core.control.fields import Invalid
from core.control.ledger import Entry
from core.mappings import Mapping, MappingConfig, Schemas, Seek, Steering, Wanted
from core.mappings.preview import preview as preview_mapping
from core.mappings.preview import read_sample as read_record
from core.registry import open_secret, seal_secret
from core.rules import Rule, RuleConfig, Sasl
from core.rules.checks import ConfigError
from core.rules.preview import convert_sample as convert_rule_sample
from core.rules.preview import preview as preview_rules
from core.rules.schema import RuleSchema
from relay.runtime.settings import Secret

PREVIEW_ID = "preview"
"""The id of a rule or mapping that is only tried."""
RULE_VERSION = "1.2"
"""Of the JSON of rules, as the public API counts."""
_MAPPING_FIELDS = {
    "status": "status",
    "topics": "topics",
    "topicPattern": "topic_pattern",
    "channel": "channel",
    "messageName": "message_name",
    "key": "key",
    "value": "value",
    "from": "from",
    "onFailedRecordMapping": "on_failed_record_mapping",
    "dlqTopic": "dlq_topic",
    "keepLast": "keep_last",
}
"""Members of a mapping and the settings of core.toml that they are."""
MAPPING_RECORDS = ("mapping:", "steering:", "app:")
"""What the keys of records begin with that say which mappings run, and how."""
_SEEK_FIELDS = ("to", "topic", "partition", "offset")
_SASL_FIELDS = {"tokenEndpoint": "token_endpoint", "tokenCa": "token_ca"}
_SCHEMA_FIELDS = {"onInvalid": "on_invalid", "dlqTopic": "dlq_topic"}
_PATH = re.compile(r"(?s)(.*?)(?: - at `\$\.?(.*)`)?")

Body = dict[str, Any]
T = TypeVar("T")


class _Made(NamedTuple):
    """A rule as it was made of a record; None if it cannot run."""

    entry: Entry
    rule: Rule | None


class Pipelines:
    """The rules and mappings of all apps. `make_rule` and `make_mapping` are those of `core.config`: they raise ValueError for what the
    core could not run.

    `runs` says whether a rule is in force where it has to be, `live` what there is to tell of it by its label: set by whoever runs them.
    """

    def __init__(
        self,
        control: Control,
        *,
        make_rule: Callable[..., Rule],
        make_mapping: Callable[[str, MappingConfig], Mapping],
        static_rules: Iterable[tuple[str, RuleConfig]] = (),
        static_mappings: Iterable[tuple[str, MappingConfig]] = (),
    ) -> None:
        self._control = control
        self._make_rule = make_rule
        self._make_mapping = make_mapping
        self._static_rules = list(static_rules)
        self._static_mappings = list(static_mappings)
        self.runs: Callable[[Rule], bool] = lambda _: True
        self.live: Callable[[str], Body] | None = None
        self._made: dict[str, _Made] = {}
        self._running: dict[str, int] = {}
        """Record key and `rev` of the mappings that this core runs."""
        self._mappings_made: dict[str, tuple[int, Mapping | None]] = {}
        """Record key, `rev` and mapping, so that each is made once; None for one that cannot be."""
        self._static_mappings_made: list[tuple[str, Mapping]] | None = None

    # --- what a core runs ----------------------------------------------------------------------------------------------------------------

    def rules_to_run(self, failed: Callable[[str, str], None]) -> list[Rule]:
        """All rules that are configured here, as they are now; those that are as they were are the same objects as the last time. `failed`
        is told, once for each version, the record and why of what cannot run."""
        ledger, known = self._control.ledger, self._made
        self._made = {}
        for entry in ledger.of("rule"):
            app, _, name = entry.name.partition(":")
            if ledger.get("app", app) is None:
                continue
            made = known.get(entry.key)
            if made is None or made.entry is not entry:
                try:
                    rule = self._rule(app, name, entry.data["body"], self._password(entry), _begun(entry))
                except (Invalid, KeyError, TypeError, AttributeError) as error:
                    failed(entry.key, str(error))
                    made = _Made(entry, None)
                else:
                    same = made is not None and made.rule is not None and (made.rule.config, made.rule.begun) == (rule.config, rule.begun)
                    made = _Made(entry, made.rule if same and made is not None else rule)
            self._made[entry.key] = made
        return [made.rule for made in self._made.values() if made.rule is not None]

    def mappings_to_run(self, failed: Callable[[str, str], None]) -> list[Wanted]:
        """Every mapping that is to run from now on, those of core.toml included: not what is disabled, nor is its app. `failed` is told the
        record and why of what cannot run, once for each version of it."""
        found = [Wanted(mapping, self._steering(app, mapping.id)) for app, mapping in self._static_made() if _enabled(mapping)]
        for entry in self._control.ledger.of("mapping"):
            app, _, name = entry.name.partition(":")
            mapping = self._mapping_of(entry, failed)
            owner = self._control.ledger.get("app", app)
            if mapping is None:
                self._running.pop(entry.key, None)
                continue
            self._running[entry.key] = entry.rev
            if owner is not None and owner.data.get("status", "enabled") == "enabled" and _enabled(mapping):
                found.append(Wanted(mapping, self._steering(app, name)))
        return found

    def _static_made(self) -> list[tuple[str, Mapping]]:
        if self._static_mappings_made is None:
            self._static_mappings_made = [(app, self._make_mapping(app, config)) for app, config in self._static_mappings]
        return self._static_mappings_made

    def _mapping_of(self, entry: Entry, failed: Callable[[str, str], None]) -> Mapping | None:
        rev, made = self._mappings_made.get(entry.key, (-1, None))
        if rev != entry.rev:
            app, _, name = entry.name.partition(":")
            made = None
            try:
                made = self._mapping(app, name, entry.data["body"])
            except (Invalid, KeyError, TypeError) as error:
                failed(entry.key, str(error))
            self._mappings_made[entry.key] = (entry.rev, made)
        return made

    def _steering(self, app: str, name: str) -> Steering:
        entry = self._control.ledger.get("steering", f"{app}:{name}")
        if entry is None:
            return Steering()
        try:
            return msgspec.convert(entry.data, Steering)
        except msgspec.ValidationError:
            return Steering()  # of a newer version: it runs as it is configured

    # --- rules ---------------------------------------------------------------------------------------------------------------------------

    def rules(self, app: str, *, secrets: bool) -> list[Body]:
        self._control.check_app(app)
        found = [
            _static_rule(app, config, secrets=secrets) | {"live": self._live(app, config.id)}
            for of, config in self._static_rules
            if of == app
        ]
        return found + [self._rule_view(entry, secrets=secrets) for entry in self._control.ledger.of("rule", f"{app}:")]

    def rule(self, app: str, rule: str, *, secrets: bool) -> Body:
        """Raises: RelayError 40400."""
        for view in self.rules(app, secrets=secrets):
            if view["id"] == rule:
                return view
        raise missing("rule", rule)

    def create_rule(self, app: str, body: Body, now_ms: int, *, secrets: bool) -> Change:
        name = self._new("rule", app)
        settled, password = _rule_body(body, None)
        self._rule(app, name, settled, password)
        data = {"v": 1, "body": settled, "created": now_ms, "modified": now_ms, "begun": 1}
        return self._rule_change("rule.create", app, name, None, data, password, 201, secrets)

    def change_rule(self, app: str, rule: str, body: Body, now_ms: int, *, secrets: bool) -> Change:
        entry = self._entry("rule", app, rule)
        old = self._password(entry)
        settled, password = _rule_body(body, entry.data["body"])
        if password is None and _sasl(settled) is not None:
            password = old  # sent back as it was shown, without
            if password is not None and not secrets:
                _check_shown_to(entry.data["body"], settled)
        self._rule(app, rule, settled, password)
        data = {**kept(entry), "body": settled, "modified": now_ms}
        if entry.data["body"]["status"] == "disabled":
            data["begun"] = entry.rev + 1  # that of this record: what was left to be written before is given up
        return self._rule_change("rule.change", app, rule, entry, data, password, 200, secrets)

    def delete_rule(self, app: str, rule: str, now_ms: int) -> Change:
        entry = self._entry("rule", app, rule)
        return _deletion("rule", app, rule, entry, _rule_view(app, rule, entry.data, None), now_ms)

    def _rule_change(
        self, action: str, app: str, name: str, entry: Entry | None, data: Body, password: str | None, status: int, secrets: bool
    ) -> Change:
        key, target = f"rule:{app}:{name}", {"app": app, "rule": name}
        data.pop("password", None)
        old = None if entry is None else self._password(entry)
        if password is not None:
            data["password"] = seal_secret(self._control.keyring, key, password)
        after = _rule_view(app, name, data, None)
        if password != old:
            after["secretsChanged"] = ["target.auth.sasl.password"]
        before = None if entry is None else _rule_view(app, name, entry.data, None)
        shows = target if secrets and password is not None else None
        return Change(action, target, before, after, key, data, status, lambda: self.rule(app, name, secrets=secrets), shows)

    def _rule_view(self, entry: Entry, *, secrets: bool) -> Body:
        app, _, name = entry.name.partition(":")
        view = _rule_view(app, name, entry.data, self._password(entry) if secrets else None)
        made = self._made.get(entry.key)
        running = made is not None and made.entry is entry and made.rule is not None and self.runs(made.rule)
        return view | {"running": running, "live": self._live(app, name)}

    def _live(self, app: str, rule: str) -> Body | None:
        return None if self.live is None else self.live(f"{app}/{rule}")

    def _password(self, entry: Entry) -> str | None:
        sealed = entry.data.get("password")
        try:
            return open_secret(self._control.keyring, entry.key, sealed) if isinstance(sealed, str) else None
        except ValueError:
            return None

    def _rule(self, app: str, name: str, body: Body, password: str | None, begun: int = 0) -> Rule:
        """Raises: Invalid."""
        body = _for_own_cluster(body)
        source, target = body["source"], body["target"]
        sasl = _sasl(body)
        if sasl is not None:
            sasl = {_SASL_FIELDS.get(name, name): value for name, value in sasl.items()}
        raw: Body = {
            "id": name,
            "status": body["status"],
            "request_mode": body["requestMode"],
            "source": {"type": source["type"], "channel_filter": source["channelFilter"]},
            "target": {
                "routing_key": target["routingKey"],
                "enveloped": target["enveloped"],
                "format": target["format"],
                "brokers": target["brokers"],
                "headers": target.get("headers", []),
                "tls": target.get("tls"),
                "ca": target.get("ca", ""),
                "schema": _schema(target.get("schema")),
                "auth": None if sasl is None else {"sasl": {**sasl, "password": password or ""}},
            },
        }
        return _made(lambda: self._make_rule(app, msgspec.convert(raw, RuleConfig, dec_hook=_secret), begun=begun))

    # --- mappings ------------------------------------------------------------------------------------------------------------------------

    def mappings(self, app: str) -> list[Body]:
        self._control.check_app(app)
        found = [_static_mapping(app, config) | self._steered(app, config.id) for of, config in self._static_mappings if of == app]
        return found + [self._mapping_view(entry) for entry in self._control.ledger.of("mapping", f"{app}:")]

    def mapping(self, app: str, mapping: str) -> Body:
        for view in self.mappings(app):
            if view["id"] == mapping:
                return view
        raise missing("mapping", mapping)

    def create_mapping(self, app: str, body: Body, now_ms: int) -> Change:
        name = self._new("mapping", app)
        settled = _mapping_body(body, None)
        self._mapping(app, name, settled)
        data = {"v": 1, "body": settled, "created": now_ms, "modified": now_ms}
        return self._mapping_change("mapping.create", app, name, None, data, 201)

    def change_mapping(self, app: str, mapping: str, body: Body, now_ms: int) -> Change:
        entry = self._entry("mapping", app, mapping)
        settled = _mapping_body(body, entry.data["body"])
        self._mapping(app, mapping, settled)
        return self._mapping_change("mapping.change", app, mapping, entry, {**kept(entry), "body": settled, "modified": now_ms}, 200)

    def delete_mapping(self, app: str, mapping: str, now_ms: int) -> Change:
        entry = self._entry("mapping", app, mapping)
        return _deletion("mapping", app, mapping, entry, self._mapping_view(entry), now_ms)

    # Those of core.toml can be held and moved too: that changes nothing of what the file says.

    def pause_mapping(self, app: str, mapping: str, now_ms: int, *, paused: bool) -> Change:
        """It reads nothing until it is resumed, and keeps its partitions and positions."""
        self._target(app, mapping)
        steering = msgspec.structs.replace(self._steering(app, mapping), paused=paused)
        return self._steer("mapping.pause" if paused else "mapping.resume", app, mapping, steering, now_ms)

    def seek_mapping(self, app: str, mapping: str, body: Body, now_ms: int) -> Change:
        """It goes on elsewhere: at a position that the body says, on every partition or on those that the body names."""
        config = self._target(app, mapping)
        steering = self._steering(app, mapping)
        raw = _seek_body(body)
        topic = raw.pop("topic", None)
        checked = _made(lambda: self._make_mapping(app, config))
        if topic is not None and not checked.reads(topic):
            raise Invalid({"topic": ["is none that the mapping reads"]})
        topics, pattern = ([topic], "") if topic is not None else (config.topics, config.topic_pattern)
        number = 1 + (steering.last.number if steering.last is not None else 0)
        seek = _made(lambda: msgspec.convert({**raw, "number": number, "at": now_ms, "topics": topics, "pattern": pattern}, Seek))
        if isinstance(seek.to, int):
            try:
                self._make_mapping(app, msgspec.structs.replace(config, start=seek.to))
            except ConfigError as error:
                raise Invalid({"to": [error.reason]}) from None
        return self._steer("mapping.seek", app, mapping, steering.then(seek, self._control.limits.mapping_seeks), now_ms)

    def _target(self, app: str, mapping: str) -> MappingConfig:
        """The configuration of a mapping, wherever it comes from. Raises: RelayError 40400."""
        self._control.check_app(app)
        for of, config in self._static_mappings:
            if (of, config.id) == (app, mapping):
                return config
        entry = self._control.ledger.get("mapping", f"{app}:{mapping}")
        if entry is None:
            raise missing("mapping", mapping)
        return self._mapping(app, mapping, entry.data["body"]).config

    def _steer(self, action: str, app: str, name: str, steering: Steering, now_ms: int) -> Change:
        data = {"v": 1, **msgspec.to_builtins(steering), "modified": now_ms}
        before, after = self._steered(app, name), _steering_view(steering)
        return Change(
            action, {"app": app, "mapping": name}, before, after, f"steering:{app}:{name}", data, 200, lambda: self.mapping(app, name)
        )

    def _steered(self, app: str, name: str) -> Body:
        return _steering_view(self._steering(app, name))

    def _mapping_change(self, action: str, app: str, name: str, entry: Entry | None, data: Body, status: int) -> Change:
        target = {"app": app, "mapping": name}
        before = None if entry is None else self._mapping_view(entry)
        after = _mapping_view(app, name, data) | self._steered(app, name)
        return Change(action, target, before, after, f"mapping:{app}:{name}", data, status, lambda: self.mapping(app, name))

    def _mapping_view(self, entry: Entry) -> Body:
        app, _, name = entry.name.partition(":")
        running = {"running": self._running.get(entry.key) == entry.rev}
        return _mapping_view(app, name, entry.data) | self._steered(app, name) | running

    def _mapping(self, app: str, name: str, body: Body) -> Mapping:
        raw = {"id": name} | {_MAPPING_FIELDS[field]: value for field, value in body.items() if value is not None}
        return _made(lambda: self._make_mapping(app, msgspec.convert(raw, MappingConfig)))

    # --- previews ------------------------------------------------------------------------------------------------------------------------

    def preview_rules(self, app: str, body: Body, *, site: str, now_ms: int) -> list[Body]:
        """What `event` would become under `rule`, one that need not be there yet; else under `ruleId`; else under all rules of the app.
        Raises: RelayError 40400; Invalid."""
        self._control.check_app(app)
        asked = body.get("rule")
        name = _name_of(body, "ruleId")
        if asked is None:
            rules = [rule for rule in self._all_rules(app) if name in ("", rule.id)]
            if name and not rules:
                raise missing("rule", name)
        elif not isinstance(asked, dict):
            raise Invalid({"rule": ["must be an object"]})
        else:
            settled, password = _rule_body(asked, None)
            entry = self._control.ledger.get("rule", f"{app}:{name}")
            if password is None and entry is not None and _sasl(settled) is not None:
                password = self._password(entry)
            rules = [self._rule(app, name or PREVIEW_ID, settled, password)]
        try:
            sample = convert_rule_sample(body.get("event"))
            return [each.shape() for each in preview_rules(rules, sample, site=site, now_ms=now_ms)]
        except ValueError as wrong:
            raise Invalid({"event": [str(wrong)]}) from None

    def preview_mappings(self, app: str, body: Body, *, now_ms: int, schemas: Schemas | None) -> list[Body]:
        """The same for `record`, `mapping` and `mappingId`; without either, under all mappings of the app that read the record's topic."""
        self._control.check_app(app)
        asked = body.get("mapping")
        name = _name_of(body, "mappingId")
        if asked is None:
            mappings = [mapping for mapping in self._all_mappings(app) if name in ("", mapping.id)]
            if name and not mappings:
                raise missing("mapping", name)
        elif not isinstance(asked, dict):
            raise Invalid({"mapping": ["must be an object"]})
        else:
            mappings = [self._mapping(app, name or PREVIEW_ID, _mapping_body(asked, None))]
        try:
            record = read_record(body.get("record"))
        except ValueError as wrong:
            raise Invalid({"record": [str(wrong)]}) from None
        reading = [mapping for mapping in mappings if mapping.reads(record.topic)]
        if not reading and (asked is not None or name):
            return [{"mapping": mappings[0].id, "reason": "not_read", "detail": f"does not read the topic {record.topic}", "then": "skip"}]
        return [preview_mapping(mapping, record, now_ms, schemas).shape() for mapping in reading]

    def _all_rules(self, app: str) -> list[Rule]:
        """Those that can be run."""
        found = [self._make_rule(app, config) for of, config in self._static_rules if of == app]
        for entry in self._control.ledger.of("rule", f"{app}:"):
            with contextlib.suppress(Invalid, KeyError, TypeError):
                found.append(self._rule(app, entry.name.partition(":")[2], entry.data["body"], self._password(entry)))
        return found

    def _all_mappings(self, app: str) -> list[Mapping]:
        found = [self._make_mapping(app, config) for of, config in self._static_mappings if of == app]
        for entry in self._control.ledger.of("mapping", f"{app}:"):
            with contextlib.suppress(Invalid, KeyError, TypeError):
                found.append(self._mapping(app, entry.name.partition(":")[2], entry.data["body"]))
        return found

    # --- both ----------------------------------------------------------------------------------------------------------------------------

    def _new(self, kind: str, app: str) -> str:
        """An id for one more. Raises: RelayError."""
        self._control.changeable(app)
        most = self._control.limits.control_per_app
        if sum(1 for _ in self._control.ledger.of(kind, f"{app}:")) >= most:
            raise too_many(f"{kind}s of one app", most)
        return self._control.unused(kind, 6, f"{app}:")

    def _entry(self, kind: str, app: str, name: str) -> Entry:
        self._control.changeable(app)
        entry = self._control.ledger.get(kind, f"{app}:{name}")
        if entry is None:
            raise missing(kind, name)
        return entry


def _begun(entry: Entry) -> int:
    begun = entry.data.get("begun")
    return begun if type(begun) is int else 0


def _name_of(body: Body, field: str) -> str:
    """Raises: Invalid."""
    name = body.get(field) or ""
    if not isinstance(name, str):
        raise Invalid({field: ["must be text"]})
    return name


def _deletion(kind: str, app: str, name: str, entry: Entry, before: Body, now_ms: int) -> Change:
    data = {"v": 1, "deleted": True, "modified": now_ms}
    return Change(f"{kind}.delete", {"app": app, kind: name}, before, None, entry.key, data, 204, lambda: None)


def _made(make: Callable[[], T]) -> T:
    """What `make` makes of a configuration; its complaints in the words of the API. Raises: Invalid."""
    try:
        return make()
    except ConfigError as error:
        raise Invalid({_camel(error.field): [error.reason]}) from None
    except msgspec.ValidationError as error:
        found = _PATH.fullmatch(str(error))
        assert found is not None, "it matches everything"
        why, at = found.groups()
        raise Invalid({_camel(at or "body"): [why]}) from None
    except ValueError as error:
        raise Invalid({"body": [str(error)]}) from None


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found.group(1).upper(), name)


def _secret(_kind: type, value: object) -> Secret:
    if not isinstance(value, str):
        raise ValueError("expected text")  # noqa: TRY004 - msgspec wants it so
    return Secret(value)


# --- the JSON of rules -------------------------------------------------------------------------------------------------------------------


def _part(body: Body, name: str, details: dict[str, list[str]]) -> Body:
    part = body.get(name)
    if part is None:
        return {}
    if not isinstance(part, dict):
        details[name] = ["must be an object"]
        return {}
    return part


def _or(value: Any, default: Any) -> Any:
    """Null and empty text count as not given: Go clients send them for it."""
    return default if value is None or value == "" else value


def _rule_body(body: Body, known: Body | None) -> tuple[Body, str | None]:
    """What is kept of a rule as it was sent, and the password that was in it. `known`: what a PATCH changes. Types below are left to the
    configuration's own checks. Raises: Invalid."""
    details: dict[str, list[str]] = {}
    source, target = _part(body, "source", details), _part(body, "target", details)
    if known is not None:
        source, target = {**known["source"], **source}, {**known["target"], **target}
    top = {**(known or {}), **body}
    if top.get("ruleType") != "kafka":
        details["ruleType"] = ["must be kafka: there are no others"]
    if known is None and "requestMode" not in body:
        details["requestMode"] = ["is required"]
    if _or(source.get("type"), None) is None and "source" not in details:
        details["source.type"] = ["is required"]
    if _or(target.get("routingKey"), None) is None and "target" not in details:
        details["target.routingKey"] = ["is required"]
    auth, password = _auth(target, details)
    settled = {
        "ruleType": "kafka",
        "requestMode": _or(top.get("requestMode"), "single"),
        "status": _or(top.get("status"), "enabled"),
        "source": {"channelFilter": _or(source.get("channelFilter"), ""), "type": source.get("type")},
        "target": {
            "routingKey": target.get("routingKey"),
            "brokers": _or(target.get("brokers"), []),
            "auth": auth,
            "enveloped": _or(target.get("enveloped"), True),
            "format": _or(target.get("format"), "json"),
            **{name: target[name] for name in ("headers", "tls", "ca", "schema") if target.get(name) is not None},
        },
    }
    if details:
        raise Invalid(details)
    return settled, password


def _auth(target: Body, details: dict[str, list[str]]) -> tuple[Body | None, str | None]:
    """`auth` without the password, and the password."""
    auth = _part(target, "auth", details)
    sasl = _part(auth, "sasl", details)
    if all(_or(value, None) is None for value in sasl.values()):
        return None, None
    password = _or(sasl.get("password"), None)
    if password is not None and not isinstance(password, str):
        details["target.auth.sasl.password"] = ["must be text"]
        password = None
    kept = {"mechanism": sasl.get("mechanism"), "username": sasl.get("username")}
    kept |= {name: sasl[name] for name in ("tokenEndpoint", "tokenCa", "scope", "extensions") if _or(sasl.get(name), None) is not None}
    return {"sasl": kept}, password


def _check_shown_to(before: Body, after: Body) -> None:
    """Who may not see the password of a rule may not have it shown to others either. Raises: Invalid."""
    if _shown_to(before) != _shown_to(after):
        why = "must be given again, without the scope secrets: it would be sent elsewhere, or otherwise, than before"
        raise Invalid({"target.auth.sasl.password": [why]})


def _shown_to(body: Body) -> tuple[Any, ...]:
    """Whom a rule shows its password to, and how. With a login there is TLS unless it says otherwise."""
    sasl, target = _sasl(body) or {}, body["target"]
    tokens = sasl.get("tokenEndpoint") or "", sasl.get("tokenCa") or ""
    return target["brokers"], target.get("tls") is not False, target.get("ca") or "", sasl.get("mechanism"), *tokens


def _sasl(body: Body) -> Body | None:
    auth = body["target"]["auth"]
    return None if auth is None else dict(auth["sasl"])


def _for_own_cluster(body: Body) -> Body:
    """What names a rule to brokers is kept and means nothing without brokers: the public Terraform provider cannot leave it out. It must be
    well-formed all the same. Raises: Invalid."""
    sasl = _sasl(body)
    if sasl is None or body["target"]["brokers"] != []:
        return body
    named = {"mechanism": sasl["mechanism"], "username": _or(sasl["username"], "-"), "password": "-"}
    checked = {"id": "-", "target": {"routing_key": "-", "auth": {"sasl": named}}}
    _made(lambda: msgspec.convert(checked, RuleConfig, dec_hook=_secret))
    return {**body, "target": {**body["target"], "auth": None}}


def _rule_view(app: str, name: str, data: Body, password: str | None) -> Body:
    body = data["body"]
    sasl = _sasl(body)
    target = body["target"] | {"auth": None if sasl is None else {"sasl": {**sasl, "password": password}}}
    return {
        "id": name,
        "appId": app,
        "version": RULE_VERSION,
        **body,
        "target": target,
        "created": data["created"],
        "modified": data["modified"],
        "_links": None,
    }


def _static_rule(app: str, config: RuleConfig, *, secrets: bool) -> Body:
    source, target = config.source, config.target
    sasl = None if target.auth is None else target.auth.sasl
    body = {
        "ruleType": "kafka",
        "requestMode": config.request_mode,
        "status": config.status,
        "source": {"channelFilter": source.channel_filter, "type": source.type},
        "target": {
            "routingKey": target.routing_key,
            "brokers": target.brokers,
            "auth": None if sasl is None else {"sasl": _static_sasl(sasl)},
            "enveloped": target.enveloped,
            "format": target.format,
            "headers": [{"name": header.name, "value": header.value} for header in target.headers],
            **{
                name: value
                for name, value in (("tls", target.tls), ("ca", target.ca or None), ("schema", _static_schema(target.schema)))
                if value is not None
            },
        },
    }
    password = sasl.password.reveal() if sasl is not None and secrets else None
    return _rule_view(app, config.id, {"body": body, "created": 0, "modified": 0}, password) | {"running": True}


def _schema(asked: Any) -> Any:
    """With the names of core.toml."""
    if not isinstance(asked, dict):
        return asked
    return {_SCHEMA_FIELDS.get(name, name): value for name, value in asked.items() if value is not None}


def _static_schema(schema: RuleSchema | None) -> Body | None:
    if schema is None:
        return None
    named = {setting: name for name, setting in _SCHEMA_FIELDS.items()}
    return {named.get(setting, setting): value for setting, value in msgspec.to_builtins(schema).items()}


def _static_sasl(sasl: Sasl) -> Body:
    more = {"tokenEndpoint": sasl.token_endpoint, "tokenCa": sasl.token_ca, "scope": sasl.scope, "extensions": sasl.extensions}
    return {"mechanism": sasl.mechanism, "username": sasl.username} | {name: value for name, value in more.items() if value}


def shows_password(view: Body) -> bool:
    auth = view["target"]["auth"]
    return auth is not None and auth["sasl"]["password"] is not None


# --- the JSON of mappings ----------------------------------------------------------------------------------------------------------------


def _mapping_body(body: Body, known: Body | None) -> Body:
    """Raises: Invalid."""
    if known is None and _or(body.get("channel"), None) is None:
        raise Invalid({"channel": ["is required"]})
    found = {**(known or {}), **{field: value for field, value in body.items() if field in _MAPPING_FIELDS}}
    return {"status": "enabled"} | {field: value for field, value in found.items() if value is not None}


def _mapping_view(app: str, name: str, data: Body) -> Body:
    shown = dict.fromkeys(_MAPPING_FIELDS) | data["body"]
    return {"id": name, "appId": app, **shown, "created": data["created"], "modified": data["modified"], "_links": None}


def _static_mapping(app: str, config: MappingConfig) -> Body:
    raw = msgspec.to_builtins(config)
    body = {field: raw[setting] for field, setting in _MAPPING_FIELDS.items()}
    return _mapping_view(app, config.id, {"body": body, "created": 0, "modified": 0}) | {"running": True}


def _steering_view(steering: Steering) -> Body:
    return {"paused": steering.paused, "seek": None if steering.last is None else steering.last.view()}


def _seek_body(body: Body) -> Body:
    """The members of a seek that are given, as far as they go together. Raises: Invalid."""
    found = {name: value for name in _SEEK_FIELDS if (value := body.get(name)) is not None}
    details: dict[str, list[str]] = {}
    if ("to" in found) == ("offset" in found):
        details["to"] = ["give either to (earliest, latest, or milliseconds since 1970) or offset"]
    if "partition" in found and "topic" not in found:
        details["topic"] = ["is needed with partition"]
    if "offset" in found and "partition" not in found:
        details["partition"] = ["is needed with offset"]
    if "topic" in found and not isinstance(found["topic"], str):
        details["topic"] = ["must be text"]
    if details:
        raise Invalid(details)
    return found


def _enabled(mapping: Mapping) -> bool:
    return mapping.config.status == "enabled"
