"""The OpenAPI document of the Control API, `GET /v1/openapi.json`. Pure data; a test holds it against the running routes."""

from __future__ import annotations

from functools import cache
from typing import Any

from core.control.access import SCOPES
from core.control.control import MAX_CONFLATION_MS, NAMESPACE_FLAGS, NO_EFFECT, PUSH_TEXTS
from core.control.fields import MAX_TEXT
from core.revocations import MAX_TARGET, MAX_TARGETS
from relay.model.capability import Operation
from relay.model.stats import UNITS

VERSION = "1.0.0"

_TEXT = {"type": "string", "maxLength": MAX_TEXT}
_MAYBE_TEXT = {"type": ["string", "null"], "maxLength": MAX_TEXT}
_FLAG = {"type": ["boolean", "null"]}
_TIME = {"type": "integer", "minimum": 0, "description": "Milliseconds since 1970"}
_MAYBE_TIME = {"type": ["integer", "null"], "minimum": 0}
_CAPABILITY = {
    "type": "object",
    "description": 'Resource → list of operations, as in {"chat:*": ["publish", "subscribe"]}',
    "additionalProperties": {"type": "array", "items": {"type": "string"}},
}


def _object(properties: dict[str, Any], required: tuple[str, ...] | None = None) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties if required is None else required)}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "type": ["object", "null"]}


def _preview_body(sample: str, about: str, kind: str, otherwise: str) -> dict[str, Any]:
    return _object(
        {
            sample: {"type": "object", "description": about},
            kind: {"type": ["object", "null"], "description": f"A {kind} as it would be made; it need not be there"},
            f"{kind}Id": {"type": ["string", "null"], "description": f"One that is there; without both: {otherwise}"},
        },
        (sample,),
    )


def _number(low: int, high: int) -> dict[str, Any]:
    return {"type": ["integer", "null"], "minimum": low, "maximum": high}


_INTERVALS = {
    "batchingInterval": _number(20, 1_000),
    "conflationInterval": _number(1, MAX_CONFLATION_MS),
    "conflationKey": _MAYBE_TEXT,
}
_APP_BODY = {
    "name": {**_TEXT, "minLength": 1},
    "status": {"enum": ["enabled", "disabled", None]},
    "tlsOnly": _FLAG,
    "apnsUseSandboxEndpoint": _FLAG,
    **dict.fromkeys(PUSH_TEXTS, _MAYBE_TEXT),
}
_KEY_BODY = {"name": _MAYBE_TEXT, "capability": {**_CAPABILITY, "minProperties": 1}, "revocableTokens": _FLAG}
_NAMESPACE_BODY = {
    **dict.fromkeys((*NAMESPACE_FLAGS, "authenticated", "identified", "exposeTimeserial", "exposeTimeSerial"), _FLAG),
    **_INTERVALS,
}
_SOURCE = {
    "channelFilter": {"type": ["string", "null"], "description": "RE2; empty: every channel"},
    "type": {"enum": ["channel.message", "channel.presence", "channel.lifecycle", "channel.occupancy"]},
}
_TARGET = {
    "routingKey": {"type": "string", "minLength": 1, "description": "Template of topic:key"},
    "brokers": {"type": ["array", "null"], "items": {"type": "string"}, "description": "Empty: the core's own cluster"},
    "auth": {
        "type": ["object", "null"],
        "properties": {
            "sasl": {
                "type": ["object", "null"],
                "properties": {
                    "mechanism": {"enum": ["plain", "scram-sha-256", "scram-sha-512", "oauthbearer", "", None]},
                    "username": {"type": ["string", "null"], "description": "With oauthbearer the client's id"},
                    "password": {"type": ["string", "null"], "description": "null in answers without the scope `secrets`"},
                    "tokenEndpoint": {"type": ["string", "null"], "description": "Of oauthbearer: https"},
                    "tokenCa": {"type": ["string", "null"], "description": "PEM of the token endpoint's authority"},
                    "scope": {"type": ["string", "null"], "description": "Of oauthbearer"},
                    "extensions": {"type": ["string", "null"], "description": "Of oauthbearer: key=value,key=value"},
                },
            }
        },
    },
    "enveloped": _FLAG,
    "format": {"enum": ["json", "msgpack", "", None]},
    "headers": {
        "type": ["array", "null"],
        "items": _object({"name": {"type": "string"}, "value": {"type": "string"}}),
    },
    "tls": _FLAG,
    "schema": {
        "type": ["object", "null"],
        "description": "Of Schema Registry; payloads are checked and encoded by it. Plain records of one topic",
        "properties": {
            "format": {"enum": ["avro", "protobuf", "json_schema"]},
            "subject": {"type": "string", "minLength": 1},
            "version": {"type": "integer", "minimum": 0, "description": "0: the latest"},
            "onInvalid": {"enum": ["drop", "dlq"]},
            "dlqTopic": {"type": "string"},
        },
    },
    "ca": {"type": ["string", "null"], "description": "Certificates in PEM that the other cluster's are checked against"},
}
_RULE = {
    "ruleType": {"const": "kafka"},
    "requestMode": {"enum": ["single", "batch", "", None]},
    "status": {"enum": ["enabled", "disabled", "", None]},
}
_MAPPING = {
    "status": {"enum": ["enabled", "disabled", None]},
    "topics": {"type": ["array", "null"], "items": {"type": "string"}},
    "topicPattern": {"type": ["string", "null"]},
    "channel": {"type": "string", "minLength": 1},
    "messageName": {"type": ["string", "null"]},
    "key": {"type": ["string", "null"]},
    "value": {"type": ["string", "null"]},
    "from": {"type": ["string", "integer", "null"]},
    "onFailedRecordMapping": {"enum": ["skip", "stop", "dlq", None]},
    "dlqTopic": {"type": ["string", "null"]},
    "keepLast": _FLAG,
}
_TARGET_OF_TOKENS = {"type": "string", "pattern": "^(clientId|revocationKey|channel):[\\s\\S]", "maxLength": MAX_TARGET}
_STORED = {
    "id": _TEXT,
    "appId": _TEXT,
    "created": _TIME,
    "modified": _TIME,
    "_links": {"type": "null"},
    "running": {"type": "boolean", "description": "Whether the core that answers has it in force just so"},
}
_OFFSETS = {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}}
_LIVE = _or_null(
    _object(
        {
            "core": _TEXT,
            "state": {"enum": ["running", "parked", "catching up", "stopped"]},
            "positions": {**_OFFSETS, "description": "By partition of the log that the core owns: before it everything is written"},
            "parked": {
                "type": "array",
                "items": _object(
                    {
                        "topic": {"type": "string", "description": "Empty: all of the rule"},
                        "reason": _TEXT,
                        "since": _TIME,
                        "partitions": {"type": "array", "items": {"type": "integer"}},
                        "cursors": _OFFSETS,
                        "catchingUp": {"type": "integer"},
                        "behind": {"type": "integer"},
                    }
                ),
            },
            "remote": {
                "type": "array",
                "description": "Of a rule into another cluster",
                "items": _object(
                    {
                        "topic": {"type": "string", "description": "Empty: all topics without a line of their own"},
                        "cluster": _TEXT,
                        "state": {"enum": ["running", "parked", "catching up"]},
                        "reason": _TEXT,
                        "since": _TIME,
                        "partitions": {"type": "array", "items": {"type": "integer"}, "description": "That are parked"},
                        "behind": {"type": "integer"},
                    }
                ),
            },
            "written": {"type": "integer"},
            "dropped": {"type": "object", "additionalProperties": {"type": "integer"}},
            "missed": {"type": "integer"},
        }
    )
)
_SEEK = {
    "to": {
        "anyOf": [{"enum": ["earliest", "latest", None]}, {"type": "integer", "minimum": 0, "maximum": 2**62}],
        "description": "`earliest`, `latest`, or the first record that is not older than this time in milliseconds since 1970",
    },
    "topic": {"type": ["string", "null"], "description": "Only this topic"},
    "partition": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**31 - 1, "description": "Only this partition of the topic"},
    "offset": {"type": ["integer", "null"], "minimum": 0, "maximum": 2**62, "description": "In place of `to`, with topic and partition"},
}
_STEERING = {
    "paused": {"type": "boolean", "description": "It is held, and reads nothing"},
    "seek": {
        **_object({"number": {"type": "integer", "minimum": 1}, "at": _TIME, **_SEEK}),
        "type": ["object", "null"],
        "description": "The last one that was asked for",
    },
}
SCHEMAS: dict[str, Any] = {
    "Error": _object(
        {
            "message": {"type": "string"},
            "code": {"type": "integer"},
            "statusCode": {"type": "integer"},
            "href": {"type": "string"},
            "details": {"type": ["object", "null"], "additionalProperties": {"type": "array", "items": {"type": "string"}}},
        }
    ),
    "Me": _object(
        {
            "token": _object(
                {
                    "id": _TEXT,
                    "name": _TEXT,
                    "capabilities": {"type": "array", "items": {"type": "string"}},
                    "scopes": {"type": "array", "items": {"enum": list(SCOPES)}},
                    "expires_at": _MAYBE_TIME,
                    "last_used_at": {"type": "null"},
                }
            ),
            "user": _object({"id": {"type": "integer"}, "email": {"type": "string"}}),
            "account": _object({"id": _TEXT, "name": _TEXT}),
        }
    ),
    "Account": _object({"id": _TEXT, "name": _TEXT}),
    "AppBody": _object(_APP_BODY, ("name",)),
    "AppPatch": _object(_APP_BODY, ()),
    "App": _object(
        {
            "accountId": _TEXT,
            "id": _TEXT,
            "name": {"type": "string"},
            "status": {"enum": ["enabled", "disabled"]},
            "tlsOnly": {"type": "boolean"},
            "apnsUseSandboxEndpoint": {"type": "boolean"},
            "apnsCertificateConfigured": {"const": False},
            "apnsSigningKeyConfigured": {"const": False},
            "fcmServiceAccountConfigured": {"const": False},
            **dict.fromkeys(PUSH_TEXTS, _MAYBE_TEXT),
            "created": _TIME,
            "modified": _TIME,
            "_links": {"type": "null"},
        }
    ),
    "KeyBody": _object(_KEY_BODY, ("capability",)),
    "KeyPatch": _object(_KEY_BODY, ()),
    "Key": _object(
        {
            "appId": _TEXT,
            "id": _TEXT,
            "name": {"type": "string"},
            "status": {"enum": [0, 1], "description": "0 enabled, 1 revoked"},
            "revocableTokens": {"type": "boolean"},
            "key": {"type": ["string", "null"], "description": "app.key:secret; null without the scope `secrets`"},
            "capability": _CAPABILITY,
            "created": _TIME,
            "modified": _TIME,
        }
    ),
    "RevocationBody": _object(
        {
            "key": {"type": "string", "minLength": 1, "description": "The id of the key that issued the tokens"},
            "targets": {"type": "array", "minItems": 1, "maxItems": MAX_TARGETS, "items": _TARGET_OF_TOKENS},
            "issuedBefore": {**_MAYBE_TIME, "description": "Milliseconds since 1970, of the last hour; null: now"},
            "allowReauthMargin": {**_FLAG, "description": "Clients have 30 seconds to bring other tokens"},
        },
        ("key", "targets"),
    ),
    "Revocation": _object(
        {
            "id": _TEXT,
            "appId": _TEXT,
            "key": _TEXT,
            "targets": {"type": "array", "items": _TARGET_OF_TOKENS},
            "status": {"enum": ["pending", "active", "expired"], "description": "Until it applies; then; when no token can be left"},
            "issuedBefore": _TIME,
            "appliesAt": _TIME,
            "expires": {**_TIME, "description": "When no token can be left that it speaks of: then it is listed no more"},
            "created": _TIME,
        }
    ),
    "NamespaceBody": _object({"id": {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}, **_NAMESPACE_BODY}, ("id",)),
    "NamespacePatch": _object(_NAMESPACE_BODY, ()),
    "Namespace": _object(
        {
            "id": {"type": "string"},
            "appId": _TEXT,
            **{name: {"type": "boolean"} for name in (*NAMESPACE_FLAGS, "authenticated", "identified", "exposeTimeserial")},
            **_INTERVALS,
            "withoutEffect": {
                "type": "array",
                "items": {"enum": list(NO_EFFECT)},
                "description": "What is on, and is kept, but changes nothing",
            },
            "created": _TIME,
            "modified": _TIME,
        }
    ),
    "RuleBody": _object(
        {**_RULE, "source": _object(_SOURCE, ("type",)), "target": _object(_TARGET, ("routingKey",))},
        ("ruleType", "requestMode", "source", "target"),
    ),
    "RulePatch": _object({**_RULE, "source": _or_null(_object(_SOURCE, ())), "target": _or_null(_object(_TARGET, ()))}, ()),
    "Rule": _object(
        {
            **_STORED,
            "version": {"const": "1.2"},
            **_RULE,
            "source": _object(_SOURCE),
            "target": _object(_TARGET, ("routingKey", "brokers")),
            "live": _LIVE,
        }
    ),
    "MappingBody": _object(_MAPPING, ("channel",)),
    "MappingPatch": _object(_MAPPING, ()),
    "Mapping": _object({**_STORED, **_MAPPING, **_STEERING}),
    "SeekBody": _object(_SEEK, ()),
    "TokenBody": _object(
        {
            "name": {**_TEXT, "minLength": 1},
            "scopes": {"type": "array", "minItems": 1, "items": {"enum": list(SCOPES)}},
            "expires": {**_MAYBE_TIME, "description": "Milliseconds since 1970, in the future; null: never"},
        },
        ("name", "scopes"),
    ),
    "Token": _object(
        {
            "id": _TEXT,
            "name": {"type": "string"},
            "scopes": {"type": "array", "items": {"enum": list(SCOPES)}},
            "status": {"enum": [0, 1], "description": "0 enabled, 1 revoked"},
            "active": {"type": "boolean", "description": "Neither revoked nor expired"},
            "created": _TIME,
            "modified": _TIME,
            "expires": _MAYBE_TIME,
            "token": {"type": ["string", "null"], "description": "Shown once, when it is made"},
        }
    ),
    "RulePreviewBody": _preview_body(
        "event",
        "`channel`, and one of `messages` and `presence` (as clients send them), `lifecycle` (a name) and `occupancy` (counts by name); "
        "`connectionId` and `timestamp` if you like",
        "rule",
        "all of the app",
    ),
    "RulePreview": _object(
        {
            "rule": {"type": "string"},
            "result": {"enum": ["record", "none"]},
            "reason": {"type": "string", "description": "Why there is none"},
            "topic": {"type": "string"},
            "key": {"type": ["string", "null"]},
            "headers": {"type": "array", "items": _object({"name": {"type": "string"}, "value": {"type": "string"}})},
            "value": {"type": "string"},
            "valueBase64": {"type": "string", "description": "In place of `value` for what is not text"},
            "decoded": {"description": "What a msgpack value says"},
        },
        ("rule", "result"),
    ),
    "MappingPreviewBody": _preview_body(
        "record",
        "`topic`; `partition`, `offset`, `key`, `value` and `headers` if you like. Keys and values are text, null, other JSON, or "
        '{"base64": "…"}',
        "mapping",
        "all that read the topic",
    ),
    "MappingPreview": _object(
        {
            "mapping": {"type": "string"},
            "channel": {"type": "string"},
            "message": {"type": "object", "description": "As clients get it in JSON"},
            "reason": {"type": "string"},
            "detail": {"type": "string"},
            "then": {"enum": ["skip", "stop", "dlq", "wait"], "description": "What happens to a record that becomes no message"},
        },
        ("mapping",),
    ),
    "Verdict": _object(
        {
            "permitted": {"type": "boolean"},
            "because": {"type": "string", "description": "One sentence"},
            "by": {"type": "array", "items": {"type": "string"}, "description": "Lines of the capability that permit it"},
            "other": {
                "type": "array",
                "items": {"type": "string"},
                "description": "Lines that match the channel and permit other things",
            },
        }
    ),
    "Channel": _object(
        {
            "channelId": {"type": "string"},
            "status": _object(
                {
                    "isActive": {"type": "boolean"},
                    "occupancy": _object({"metrics": {"type": "object", "additionalProperties": {"type": "integer"}}}),
                }
            ),
        }
    ),
    "Stats": _object(
        {
            "intervalId": {"type": "string", "description": "2026-02-03:15:04, and shorter ones for longer units; UTC"},
            "unit": {"enum": list(UNITS)},
            "appId": {"type": "string"},
            "accountId": {"type": "string"},
            "schema": {"type": "string", "description": "Where the names of entries are described"},
            "inProgress": {"type": "string", "description": "The present minute, if the interval is not over"},
            "entries": {"type": "object", "additionalProperties": {"type": "number"}, "description": "By name; only what is not zero"},
        },
        required=("intervalId", "unit", "schema", "entries"),
    ),
    "Cluster": _object(
        {
            "cores": {"type": "array", "items": {"type": "object"}, "description": "As each says in /v1/status, or its `error`"},
            "edges": {"type": "array", "items": {"type": "object"}},
            "partitions": {"type": "array", "items": {"type": "object"}},
            "peers": {"type": "integer", "description": "How many other addresses the core is configured to ask"},
        }
    ),
    "AuditEntry": _object(
        {
            "id": {"type": "string"},
            "at": _TIME,
            "by": {"type": "object", "additionalProperties": {"type": "string"}},
            "source": {"type": "string"},
            "core": {"type": "string"},
            "action": {"type": "string"},
            "target": {"type": "object", "additionalProperties": {"type": "string"}},
            "before": {},
            "after": {},
            "outcome": {"enum": ["pending", "applied", "lost", "shown"]},
        }
    ),
}


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _operation(
    summary: str,
    scopes: str,
    status: int,
    answer: str | None = None,
    *,
    body: str | None = None,
    many: bool = False,
    query: tuple[tuple[str, dict[str, Any]], ...] = (),
    needed: tuple[str, ...] = (),
) -> dict[str, Any]:
    schema = _ref(answer) if answer is not None else None
    if many and schema is not None:
        schema = {"type": "array", "items": schema}
    done: dict[str, Any] = {"description": "Done" if schema is None else "As it is now"}
    if schema is not None:
        done["content"] = _content(schema)
    found: dict[str, Any] = {
        "summary": summary,
        "description": f"Scopes: {scopes}",
        "responses": {str(status): done, "default": {"description": "Refused", "content": _content(_ref("Error"))}},
    }
    if body is not None:
        found["requestBody"] = {"required": True, "content": _content(_ref(body))}
    if query:
        found["parameters"] = [{"name": name, "in": "query", "required": name in needed, "schema": each} for name, each in query]
    return found


_ANY = "reader, operator or security"
_STATS_QUERY = (
    ("unit", {"enum": list(UNITS), "default": "minute"}),
    ("by", {"enum": list(UNITS), "description": "The former name of unit"}),
    ("start", {"type": "string", "description": "Milliseconds since 1970, or an interval"}),
    ("end", {"type": "string", "description": "The same, inclusive; now, if not given"}),
    ("direction", {"enum": ["backwards", "forwards"], "default": "backwards"}),
    ("limit", {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100}),
)
PATHS: dict[str, dict[str, Any]] = {
    "/me": {"get": _operation("Who asks, and in which account", "any", 200, "Me")},
    "/me/accounts": {"get": _operation("The one account", "any", 200, "Account", many=True)},
    "/accounts/{account}/apps": {
        "get": _operation("All apps", _ANY, 200, "App", many=True),
        "post": _operation("Make an app", "security", 201, "App", body="AppBody"),
    },
    "/apps/{app}": {
        "patch": _operation("Change an app", "security", 200, "App", body="AppPatch"),
        "delete": _operation("Delete an app, with all that is its", "security", 204),
    },
    "/apps/{app}/keys": {
        "get": _operation("All keys; revoked ones for 30 days", _ANY, 200, "Key", many=True),
        "post": _operation("Make a key", "security", 201, "Key", body="KeyBody"),
    },
    "/apps/{app}/keys/{key}": {"patch": _operation("Change a key", "security", 200, "Key", body="KeyPatch")},
    "/apps/{app}/keys/{key}/revoke": {"post": _operation("Revoke a key for good", "security", 200)},
    "/apps/{app}/keys/{key}/rotate": {"post": _operation("Give a key another secret", "security", 200, "Key")},
    "/apps/{app}/revocations": {
        "get": _operation(
            "Revocations of tokens, newest first",
            _ANY,
            200,
            "Revocation",
            many=True,
            query=(
                ("limit", {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100}),
                ("before", {"type": "string", "description": "The id of the last of the page before"}),
                ("target", {"type": "string", "description": "Of this target only"}),
            ),
        ),
        "post": _operation("Revoke tokens of a key", "security", 201, "Revocation", body="RevocationBody"),
    },
    "/apps/{app}/namespaces": {
        "get": _operation("All namespaces", _ANY, 200, "Namespace", many=True),
        "post": _operation("Make a namespace", "operator", 201, "Namespace", body="NamespaceBody"),
    },
    "/apps/{app}/namespaces/{namespace}": {
        "patch": _operation("Change a namespace", "operator", 200, "Namespace", body="NamespacePatch"),
        "delete": _operation("Delete a namespace", "operator", 204),
    },
    "/apps/{app}/rules": {
        "get": _operation("All rules", _ANY, 200, "Rule", many=True),
        "post": _operation("Make a rule; within two seconds it runs", "operator", 201, "Rule", body="RuleBody"),
    },
    "/apps/{app}/rules/{rule}": {
        "get": _operation("One rule", _ANY, 200, "Rule"),
        "patch": _operation("Change a rule; within two seconds it runs so", "operator", 200, "Rule", body="RulePatch"),
        "delete": _operation("Delete a rule; within two seconds it has stopped", "operator", 204),
    },
    "/apps/{app}/mappings": {
        "get": _operation("All mappings", _ANY, 200, "Mapping", many=True),
        "post": _operation("Make a mapping", "operator", 201, "Mapping", body="MappingBody"),
    },
    "/apps/{app}/mappings/{mapping}": {
        "get": _operation("One mapping", _ANY, 200, "Mapping"),
        "patch": _operation("Change a mapping", "operator", 200, "Mapping", body="MappingPatch"),
        "delete": _operation("Delete a mapping", "operator", 204),
    },
    "/apps/{app}/mappings/{mapping}/pause": {
        "post": _operation("Hold a mapping: it reads nothing until resumed", "operator", 200, "Mapping")
    },
    "/apps/{app}/mappings/{mapping}/resume": {"post": _operation("Let a mapping read again", "operator", 200, "Mapping")},
    "/apps/{app}/mappings/{mapping}/seek": {
        "post": _operation("Make a mapping go on elsewhere", "operator", 200, "Mapping", body="SeekBody")
    },
    "/apps/{app}/preview/rules": {
        "post": _operation("What an event would become; nothing is sent", _ANY, 200, "RulePreview", body="RulePreviewBody", many=True)
    },
    "/apps/{app}/preview/mappings": {
        "post": _operation("What a record would become; nothing is sent", _ANY, 200, "MappingPreview", body="MappingPreviewBody", many=True)
    },
    "/apps/{app}/keys/{key}/can": {
        "get": _operation(
            "Whether a key may do something on a channel",
            _ANY,
            200,
            "Verdict",
            query=(("operation", {"enum": sorted(map(str, Operation))}), ("channel", {"type": "string", "minLength": 1})),
            needed=("operation", "channel"),
        )
    },
    "/apps/{app}/channels": {
        "get": _operation(
            "Channels that are in use, by name, with their occupancy",
            _ANY,
            200,
            "Channel",
            many=True,
            query=(
                ("prefix", {"type": "string"}),
                ("after", {"type": "string", "description": "The last name of the page before"}),
                ("limit", {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100}),
            ),
        )
    },
    "/apps/{app}/stats": {"get": _operation("Statistics of an app", _ANY, 200, "Stats", many=True, query=_STATS_QUERY)},
    "/accounts/{account}/stats": {"get": _operation("Those of all its apps together", _ANY, 200, "Stats", many=True, query=_STATS_QUERY)},
    "/cluster": {"get": _operation("Cores, edges, and who owns which partition", _ANY, 200, "Cluster")},
    "/apps/{app}/queues": {
        "get": {
            **_operation("None: there are no queues", _ANY, 200),
            "responses": {
                "200": {"description": "None", "content": _content({"type": "array", "maxItems": 0})},
                "default": {"description": "Refused", "content": _content(_ref("Error"))},
            },
        }
    },
    "/tokens": {
        "get": _operation("All access tokens, without their secrets", "security", 200, "Token", many=True),
        "post": _operation("Make an access token", "security and secrets", 201, "Token", body="TokenBody"),
    },
    "/tokens/{token}": {"delete": _operation("Revoke an access token", "security", 204)},
    "/audit": {
        "get": _operation(
            "Who did what, newest first",
            "security",
            200,
            "AuditEntry",
            many=True,
            query=(
                ("limit", {"type": "integer", "minimum": 1, "maximum": 1_000, "default": 100}),
                ("before", {"type": "string"}),
                ("app", {"type": "string"}),
                ("action", {"type": "string"}),
            ),
        )
    },
}


@cache
def document() -> dict[str, Any]:
    paths: dict[str, Any] = {}
    for path, operations in PATHS.items():
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        parameters = [{"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}} for name in names]
        paths[path] = {**({"parameters": parameters} if parameters else {}), **operations}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidegate Control API",
            "version": VERSION,
            "description": "On the admin listener of every core; what one core changes holds on all within two seconds. A request with the "
            "header `X-Tidegate-Secrets: none` is answered as if its token had no scope `secrets`.",
        },
        "servers": [{"url": "/v1"}],
        "security": [{"accessToken": []}],
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": {"accessToken": {"type": "http", "scheme": "bearer"}}},
    }
