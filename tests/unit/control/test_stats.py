"""`GET /apps/{id}/stats` and `/accounts/{id}/stats`."""

from __future__ import annotations

import pytest

from relay.model.stats import ACCOUNT_SCHEMA, APP_SCHEMA, GAUGES, IN_REALTIME, SIZE, interval_id
from tests.unit.control.cores import OneCore, Topic
from tests.unit.core.dialogue import START_MS


@pytest.fixture
def core():
    return OneCore(Topic())


def numbers(count: int) -> list[int]:
    found = [0] * SIZE
    found[len(GAUGES) + IN_REALTIME] = count
    return found


def test_statistics_of_an_app_are_shown_as_version_3_has_them(core):
    hour = interval_id(START_MS, "hour")
    core.counted = [(hour, numbers(5)), ("2026-01-01:00", numbers(6))]
    found = core.ask("GET", "/apps/shop/stats", params={"by": "hour", "start": "last week", "limit": "7"}, token="reader")
    assert found.status_code == 400
    found = core.ask("GET", "/apps/shop/stats", params={"by": "hour", "start": "2026-01", "limit": "7"}, token="reader").json()
    assert [(each["intervalId"], each["unit"], each["appId"], each["schema"]) for each in found] == [
        (hour, "hour", "shop", APP_SCHEMA),
        ("2026-01-01:00", "hour", "shop", APP_SCHEMA),
    ]
    assert found[0]["inProgress"] == interval_id(START_MS)
    assert "inProgress" not in found[1]
    assert found[0]["entries"]["messages.inbound.all.messages.count"] == 5
    apps, query = core.stats_asked
    assert (apps, query.unit, query.start, query.limit, query.backwards) == (["shop"], "hour", "2026-01-01:00", 7, True)


def test_statistics_of_the_account_are_those_of_all_its_apps(core):
    core.counted = [("2026-01-01:00:00", numbers(5))]
    (found,) = core.ask("GET", "/accounts/tidegate/stats", token="reader").json()
    assert (found["accountId"], found["schema"], "appId" in found) == ("tidegate", ACCOUNT_SCHEMA, False)
    assert set(core.stats_asked[0]) == {"shop", "bank"}


def test_what_cannot_be_asked_is_refused(core):
    assert core.ask("GET", "/apps/none/stats").status_code == 404
    assert core.ask("GET", "/accounts/none/stats").status_code == 404
    assert core.ask("GET", "/apps/shop/stats", params={"limit": "1001"}).status_code == 422
    assert core.ask("GET", "/apps/shop/stats", params={"unit": "week"}).status_code == 400
