"""The inside pages of a core."""

from __future__ import annotations

import asyncio
import json

from starlette.applications import Starlette

from core.io.http import admin_app, members_route, metrics_app, watch
from relay.runtime.metrics import Metrics
from tests.journeys.test_journeys import ATTACH, CONNECTED, PRESENCE
from tests.journeys.world import World
from tests.unit.core.dialogue import Dialogue


def get(app: Starlette, path: str, query: str = "") -> tuple[int, str]:
    sent = []

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [],
        "root_path": "",
    }
    asyncio.run(app(scope, receive, send))
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent).decode()


def test_health_is_not_readiness():
    for app in (admin_app(lambda: False, dict), metrics_app(Metrics(), lambda: False)):
        assert get(app, "/healthz")[0] == 200
        assert get(app, "/readyz")[0] == 503
    assert get(admin_app(lambda: True, dict), "/readyz")[0] == 200


def test_status_shows_the_core_in_numbers():
    core = Dialogue()
    core.edge_up()
    core.admitted()
    status, body = get(admin_app(lambda: core.node.ready, core.node.status), "/v1/status")
    shown = json.loads(body)
    assert (status, shown["node"], shown["ready"], shown["sessions"]) == (200, "core-1", True, 1)
    assert shown["links"] == [{"edge": "spiffe://test/edge/eu/e1", "site": "eu", "node": "e1", "boot": "boot-1", "sessions": 1}]
    assert [(lease["edge"], lease["boot"], lease["alive"]) for lease in shown["leases"]] == [("spiffe://test/edge/eu/e1", "boot-1", True)]
    assert shown["partitions"] == [{"partition": number, "owned": True, "position": 0} for number in range(4)]


def test_members_as_one_core_has_them_without_their_data():
    world = World()
    mary = world.client(clientId="mary")
    mary.gets(CONNECTED)
    mary.sends(action=ATTACH, channel="room")
    for n, name in enumerate(["mary", "mary"]):
        mary.sends(action=PRESENCE, channel="room", msgSerial=n, presence=[{"action": 2, "clientId": name, "data": "secret"}])
    app = admin_app(lambda: True, dict, [members_route(world.cores[0].node.present)])
    status, body = get(app, "/v1/members", "app=shop&channel=room")
    assert (status, [member["clientId"] for member in json.loads(body)["members"]]) == (200, ["mary"])
    assert "secret" not in body
    assert get(app, "/v1/members", "app=shop&channel=room&limit=none")[0] == 400
    assert get(app, "/v1/members", "app=shop")[0] == 400
    assert get(app, "/v1/members", "app=shop&channel=")[0] == 404
    assert json.loads(get(app, "/v1/members", "app=shop&channel=room&after=1")[1])["members"] == []


def test_channels_in_use_by_name_with_their_occupancy():
    world = World()
    for name in ("room", "room:2", "other"):
        mary = world.client(clientId="mary")
        mary.gets(CONNECTED)
        mary.sends(action=ATTACH, channel=name)
    world.wait(2.0)
    node = world.cores[0].node

    def channels(app: str, prefix: str, after: str, limit: int) -> list[str]:
        found = node.channel_details(node.channels_in_use(app, prefix, after, limit)())
        assert all(each["status"]["occupancy"]["metrics"]["connections"] == 1 for each in found)
        return [each["channelId"] for each in found]

    assert channels("shop", "", "", 10) == ["other", "room", "room:2"]
    assert channels("shop", "room", "", 1) == ["room"]
    assert channels("shop", "room", "room", 10) == ["room:2"]
    assert channels("sho", "", "", 10) == []


def test_metrics_show_refusals_by_reason():
    core = Dialogue()
    core.edge_up()
    core.open("a", "nobody")
    metrics = Metrics()
    watch(metrics, core.node)
    page = get(metrics_app(metrics, lambda: True), "/metrics")[1]
    assert 'tidegate_core_events_total{event="open.no_witness"} 1.0' in page
    assert "tidegate_core_ready 1.0" in page
    assert "tidegate_core_fold_ids 0.0" in page
