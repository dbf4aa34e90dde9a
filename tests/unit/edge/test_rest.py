"""REST: routes, formats, errors, publish, and the calls that a core answers. Ably protocol docs, 8 and 14."""

from __future__ import annotations

import base64

import msgspec
import pytest

from edge.events import RestGone
from relay.link import calls
from relay.link.frames import Admit, Append, Fetch, Page, Unknown
from relay.model.limits import EdgeLimits
from tests.unit.edge.playbook import START_MS, Edge

BODY = b'{"name":"m","data":"d"}'


def admit(edge: Edge, *, capability: dict[str, list[str]] | None = None, client_id: str | None = "*") -> Admit:
    (asked,) = edge.take(Admit)
    edge.core(edge.admitted(asked.req, f"rest{asked.req:06d}", key="", capability=capability, client_id=client_id))
    return asked


def test_get_time_is_an_array_of_one_number_without_credentials(edge: Edge) -> None:
    status, body, headers = edge.answer(edge.asks("GET", "/time", key=None))
    assert (status, body, headers["content-type"]) == (200, [START_MS], "application/json")
    status, body, headers = edge.answer(edge.asks("GET", "/time", key=None, headers={"accept": "application/x-msgpack,application/json"}))
    assert (status, body, headers["content-type"]) == (200, [START_MS], "application/x-msgpack")


def test_1_9_the_connectivity_check(edge: Edge) -> None:
    assert edge.answer(edge.asks("GET", "/is-the-internet-up.txt", key=None))[:2] == (200, b"yes")


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nope"), ("POST", "/comet/connect"), ("POST", "/apps"), ("GET", "/keys/a.b/requestToken"), ("GET", "/")]
)
def test_an_unknown_route_is_40400_in_body_and_headers(edge: Edge, method: str, path: str) -> None:
    status, body, headers = edge.answer(edge.asks(method, path, key=None))
    assert (status, body["error"]["code"], body["error"]["statusCode"]) == (404, 40400, 404)
    assert headers["x-ably-errorcode"] == "40400"
    assert headers["x-ably-errormessage"]
    assert headers["content-type"] == "application/json"
    assert headers["access-control-allow-origin"] == "*"


def test_cors_preflight(edge: Edge) -> None:
    status, body, headers = edge.answer(
        edge.asks("OPTIONS", "/channels/c/messages", key=None, headers={"access-control-request-headers": "x-foo"})
    )
    assert (status, body) == (204, b"")
    assert headers["access-control-allow-headers"] == "x-foo"
    assert "POST" in headers["access-control-allow-methods"]


def test_rsl1_a_publish_is_answered_with_201_once_it_is_durable(edge: Edge) -> None:
    call = edge.asks("POST", "/channels/c/messages", BODY)
    asked = admit(edge)
    assert (asked.realtime, asked.credential, asked.basic) == (False, "app.key:secret", True)
    (append,) = edge.take(Append)
    assert append.fresh
    assert append.id.startswith("s:")
    assert call not in edge.answers
    serial = edge.appended(append, 4)
    status, body, _ = edge.answer(call)
    assert (status, body) == (201, {"channel": "c", "messageId": append.id[2:], "serials": [f"{serial}:000"]})


def test_15_58_paths_are_routed_before_they_are_decoded(edge: Edge) -> None:
    call = edge.asks("POST", "/channels/a%2Fb%3Ac%3Fd%23%25/messages", BODY)
    admit(edge)
    (append,) = edge.take(Append)
    assert append.channel == "a/b:c?d#%"
    edge.appended(append, 1)
    assert edge.answer(call)[1]["channel"] == "a/b:c?d#%"
    assert edge.answer(edge.asks("POST", "/channels/a/b/messages", BODY))[0] == 404


def test_8_1_the_absolute_form_of_a_request_target_is_taken(edge: Edge) -> None:
    edge.asks("POST", "http://host:80/channels/c/messages", BODY)
    admit(edge)
    assert len(edge.take(Append)) == 1


def test_rsl1k_ids_of_the_client_come_back(edge: Edge) -> None:
    call = edge.asks("POST", "/channels/c/messages", b'[{"id":"AbC:0","data":"x"},{"id":"AbC:1","data":"y"}]')
    admit(edge)
    (append,) = edge.take(Append)
    assert (append.id, append.fresh) == ("i:AbC", False)
    edge.appended(append, 1)
    assert edge.answer(call)[1]["messageId"] == "AbC"


def test_a_remembered_grant_spares_the_core_and_runs_out_with_the_grant(edge: Edge) -> None:
    edge.asks("POST", "/channels/c/messages", BODY)
    admit(edge)
    edge.asks("POST", "/channels/c/messages", BODY)
    assert edge.take(Admit) == []
    assert len(edge.take(Append)) == 2
    edge.asks("POST", "/channels/c/messages", BODY, key="app.key:other")
    assert len(edge.take(Admit)) == 1
    edge.wait(295)
    edge.asks("POST", "/channels/c/messages", BODY)
    assert len(edge.take(Admit)) == 1


def test_requests_with_one_credential_at_one_time_share_one_admission(edge: Edge) -> None:
    asked = [edge.asks("POST", "/channels/c/messages", BODY) for _ in range(5)]
    admit(edge)
    assert len(edge.take(Append)) == len(asked)


def test_a_json_object_is_stored_as_its_text(edge: Edge) -> None:
    edge.asks("POST", "/channels/c/messages", b'{"data":{"a":[1]}}')
    admit(edge)
    (message,) = edge.take(Append)[0].messages
    assert (message.data, message.encoding) == ('{"a":[1]}', "json")


def test_msgpack_in_and_out(edge: Edge) -> None:
    kind = "application/x-msgpack"
    call = edge.asks(
        "POST", "/channels/c/messages", msgspec.msgpack.encode({"data": b"\x00"}), headers={"content-type": kind, "accept": kind}
    )
    admit(edge)
    (append,) = edge.take(Append)
    assert append.messages[0].data == b"\x00"
    edge.appended(append, 1)
    status, body, headers = edge.answer(call)
    assert (status, headers["content-type"], body["channel"]) == (201, kind, "c")


@pytest.mark.parametrize(
    ("header", "credential", "basic"),
    [
        ("Basic " + base64.b64encode(b"app.key:secret").decode(), "app.key:secret", True),
        ("Bearer a.b.c", "a.b.c", False),
        ("Bearer " + base64.b64encode(b"a.b.c").decode(), "a.b.c", False),
    ],
)
def test_7_1_credentials_in_the_authorization_header(edge: Edge, header: str, credential: str, basic: bool) -> None:
    claimed = {"x-ably-clientid": base64.b64encode("bób".encode()).decode()}
    edge.asks("POST", "/channels/c/messages", BODY, key=None, headers={"authorization": header, **claimed})
    (asked,) = edge.take(Admit)
    assert (asked.credential, asked.basic, asked.client_id) == (credential, basic, "bób")


@pytest.mark.parametrize(
    ("path", "body", "query", "status", "code"),
    [
        ("/channels/c/messages", b"{", "", 400, 40001),
        ("/channels/c/messages", b"", "", 400, 40001),
        ("/channels/c/messages", b"7", "", 400, 40000),
        ("/channels/c/messages", b"[]", "", 400, 40000),
        ("/channels/c/messages", BODY, "_forceNack=true", 400, 40099),
        ("/channels/%3Ahell/messages", BODY, "", 400, 40010),
        ("/channels//messages", BODY, "", 400, 40010),
        ("/channels/denied/messages", BODY, "", 401, 40160),
        ("/channels/c/messages", b'{"data":"' + b"x" * 70000 + b'"}', "", 413, 40009),
        ("/channels/c/messages", b"[" * 3000, "", 400, 40001),
        ("/channels/c/messages", b'{"connectionKey":7}', "", 400, 40006),
        ("/channels/%ff/messages", BODY, "", 400, 40000),
    ],
)
def test_8_1_a_refused_publish_has_its_code_in_body_and_header(
    edge: Edge, path: str, body: bytes, query: str, status: int, code: int
) -> None:
    call = edge.asks("POST", path, body, query=query)
    if call not in edge.answers:
        admit(edge, capability={"[*]*": ["subscribe"], "c": ["publish"], ":hell": ["publish"]})
    got, error, headers = edge.answer(call)
    assert (got, error["error"]["code"], headers["x-ably-errorcode"]) == (status, code, str(code))
    assert edge.take(Append) == []


def test_a_body_beyond_the_frame_limit_is_413(edge: Edge) -> None:
    status, body, _ = edge.answer(edge.asks("POST", "/channels/c/messages", b" " * 524_289))
    assert (status, body["error"]["code"]) == (413, 40009)


@pytest.mark.parametrize(
    ("policy", "key", "tls", "code"),
    [
        ({"basic_auth": "refuse"}, "app.key:secret", True, 40101),
        ({"basic_auth": "rest", "dev": False}, "app.key:secret", False, 40103),
        ({}, None, True, 40101),
        ({}, "nonsense", True, 40101),
    ],
)
def test_credentials_that_no_core_needs_to_see(policy: dict[str, object], key: str | None, tls: bool, code: int) -> None:
    edge = Edge(**policy)
    status, body, _ = edge.answer(edge.asks("POST", "/channels/c/messages", BODY, key=key, tls=tls))
    assert (status, body["error"]["code"]) == (401, code)
    edge.core_gets_nothing()


def test_the_cores_refusal_of_a_credential_is_the_answer(edge: Edge) -> None:
    call = edge.asks("POST", "/channels/c/messages", BODY)
    edge.refused(edge.take(Admit)[0].req, 40142)
    status, body, headers = edge.answer(call)
    assert (status, body["error"]["code"], headers["x-ably-errorcode"]) == (401, 40142, "40142")


def test_4_6_publishing_for_a_connection_leaves_the_key_to_the_core(edge: Edge) -> None:
    edge.asks("POST", "/channels/c/messages", b'{"data":"x","connectionKey":"s1!0.mac"}')
    admit(edge)
    assert edge.take(Append)[0].connection_key == "s1!0.mac"


@pytest.mark.parametrize(
    ("kind", "body", "data", "encoding"),
    [
        ("text/plain", b"hello", "hello", None),
        ("application/octet-stream", b"\x00\xff", b"\x00\xff", None),
        ("application/json", b'{"a":1}', '{"a":1}', "json"),
    ],
)
def test_8_6_an_unenveloped_body_is_the_data(edge: Edge, kind: str, body: bytes, data: object, encoding: str | None) -> None:
    edge.asks(
        "POST", "/channels/c/messages", body, query="enveloped=false&name=n", headers={"content-type": kind, "x-ably-messageid": "id1"}
    )
    admit(edge)
    (append,) = edge.take(Append)
    (message,) = append.messages
    assert (message.data, message.encoding, message.name, append.id) == (data, encoding, "n", "i:id1")


def test_a_publish_of_unknown_fate_is_503_so_that_the_sdk_tries_again(edge: Edge) -> None:
    call = edge.asks("POST", "/channels/c/messages", BODY)
    admit(edge)
    edge.core(Unknown(edge.take(Append)[0].req))
    assert edge.answer(call)[0] == 503


def test_a_publish_without_an_answer_is_503_after_20_s(edge: Edge) -> None:
    call = edge.asks("POST", "/channels/c/messages", BODY)
    admit(edge)
    edge.wait(19)
    assert call not in edge.answers
    edge.wait(2)
    assert edge.answer(call)[0] == 503


def test_without_a_link_requests_wait_for_some_seconds() -> None:
    edge = Edge(cores=0)
    first, second = edge.asks("POST", "/channels/c/messages", BODY), 0
    edge.wait(6)
    assert edge.answer(first)[:2][0] == 503
    second = edge.asks("POST", "/channels/c/messages", BODY)
    edge.link_up()
    admit(edge)
    edge.appended(edge.take(Append)[0], 1)
    assert edge.answer(second)[0] == 201


def test_a_caller_that_goes_away_is_not_answered(edge: Edge) -> None:
    call = edge.asks("POST", "/channels/c/messages", BODY)
    edge.post(RestGone(call))
    admit_frame = edge.take(Admit)[0]
    edge.core(edge.admitted(admit_frame.req, "rest000001", key=""))
    assert edge.take(Append) == []
    assert edge.answers == {}


def test_calls_in_progress_are_bounded() -> None:
    edge = Edge(limits=EdgeLimits(rest_calls=2))
    for _ in range(2):
        edge.asks("POST", "/channels/c/messages", BODY)
    status, body, _ = edge.answer(edge.asks("POST", "/channels/c/messages", BODY))
    assert (status, body["error"]["code"]) == (503, 50004)


# --- calls that a core answers -------------------------------------------------------------------------------------------------------


def test_rsa8_request_token_goes_to_the_core_as_the_client_spelled_it(edge: Edge) -> None:
    text = b'{ "keyName":"app.key",  "ttl":"3600000" }'
    call = edge.asks("POST", "/keys/app.key/requestToken", text, key=None)
    (fetch,) = edge.take(Fetch)
    request = calls.decode(fetch.what, fetch.body)
    assert isinstance(request, calls.RequestToken)
    assert (fetch.what, request.key_name, request.basic) == (calls.REQUEST_TOKEN, "app.key", None)
    assert msgspec.json.decode(request.body) == {"keyName": "app.key", "ttl": "3600000"}
    edge.core(Page(fetch.req, 201, b'{"token":"app.x","issued":1}'))
    assert edge.answer(call)[:2] == (201, {"token": "app.x", "issued": 1})


def test_a_token_details_is_msgpack_for_who_accepts_that(edge: Edge) -> None:
    call = edge.asks("POST", "/keys/app.key/requestToken", b"{}", headers={"accept": "application/x-msgpack"})
    edge.core(Page(edge.take(Fetch)[0].req, 201, b'{"token":"app.x"}'))
    status, body, headers = edge.answer(call)
    assert (status, body, headers["content-type"]) == (201, {"token": "app.x"}, "application/x-msgpack")


def test_a_refused_call_is_the_cores_refusal(edge: Edge) -> None:
    call = edge.asks("POST", "/keys/app.key/requestToken", b"{}", key=None)
    edge.refused(edge.take(Fetch)[0].req, 40104)
    status, body, _ = edge.answer(call)
    assert (status, body["error"]["code"]) == (401, 40104)


def test_a_call_on_a_lost_link_is_503(edge: Edge) -> None:
    call = edge.asks("POST", "/keys/app.key/requestToken", b"{}", key=None)
    edge.link_lost()
    assert edge.answer(call)[0] == 503


def test_14_the_sandbox_makes_and_deletes_apps_and_is_off_otherwise() -> None:
    edge = Edge(sandbox=True)
    call = edge.asks("POST", "/apps", b'{"keys":[{}]}', key=None)
    (fetch,) = edge.take(Fetch)
    assert fetch.what == calls.CREATE_APP
    edge.core(Page(fetch.req, 201, b'{"appId":"a"}'))
    assert edge.answer(call)[:2] == (201, {"appId": "a"})
    call = edge.asks("DELETE", "/apps/a")
    (fetch,) = edge.take(Fetch)
    assert calls.decode(fetch.what, fetch.body) == calls.DeleteApp("a", "app.key:secret")
    edge.core(Page(fetch.req, 204, b""))
    assert edge.answer(call)[:2] == (204, b"")
