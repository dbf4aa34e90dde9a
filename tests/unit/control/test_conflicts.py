"""Two cores change the same thing at once: every core must come to the same, whatever compaction leaves of the topic."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from core.control.ledger import KEPT_MS, OVERLAID_S, Ledger
from relay.model.limits import CoreLimits
from tests.unit.control.cores import OneCore, Topic
from tests.unit.core.dialogue import RING


@pytest.fixture
def cores(topic) -> tuple[OneCore, OneCore]:
    return OneCore(topic, "core-1"), OneCore(topic, "core-2")


def at_once(topic: Topic, *requests: Awaitable[Any]) -> list[Any]:
    """All plan against the same state; then the topic moves on."""

    async def run() -> list[Any]:
        topic.held = True
        tasks = [asyncio.ensure_future(request) for request in requests]
        for _ in range(50):
            await asyncio.sleep(0)
        topic.held = False
        topic.release()
        return await asyncio.gather(*tasks)

    return asyncio.run(run())


def state(core: OneCore) -> dict[str, Any]:
    ledger = core.control.ledger
    return {entry.key: entry.raw for kind in ("app", "key", "namespace", "token") for entry in ledger.of(kind)}


def test_what_one_core_makes_is_there_on_the_other(cores):
    one, two = cores
    app = one.an_app()
    key = two.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})
    assert one.ask("GET", f"/apps/{app}/keys").json() == [key]
    assert one.registry.key(f"{app}.{key['id']}").secret == key["key"].partition(":")[2]


def test_two_changes_of_one_key_both_come_to_pass(topic, cores):
    """The second is planned again from what the first has left."""
    one, two = cores
    app = one.an_app()
    key = one.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})["id"]
    answers = at_once(
        topic,
        one.asks("PATCH", f"/apps/{app}/keys/{key}", {"name": "renamed"}),
        two.asks("PATCH", f"/apps/{app}/keys/{key}", {"capability": {"a": ["publish"]}}),
    )
    assert [answer.status_code for answer in answers] == [200, 200]
    (seen,) = one.ask("GET", f"/apps/{app}/keys").json()
    assert (seen["name"], seen["capability"]) == ("renamed", {"a": ["publish"]})
    assert state(one) == state(two)
    assert one.registry.key(f"{app}.{key}") == two.registry.key(f"{app}.{key}")
    outcomes = [(entry["core"], entry["outcome"]) for entry in one.audit(action="key.change") if entry["outcome"] != "shown"]
    assert sorted(outcomes) == [("core-1", "applied"), ("core-2", "applied"), ("core-2", "lost")]


def test_a_revoked_key_is_not_brought_back_by_a_change_of_the_same_moment(topic, cores):
    one, two = cores
    app = one.an_app()
    key = one.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})["id"]
    revoked, changed = at_once(
        topic, one.asks("POST", f"/apps/{app}/keys/{key}/revoke"), two.asks("PATCH", f"/apps/{app}/keys/{key}", {"name": "x"})
    )
    assert (revoked.status_code, changed.status_code) == (200, 404)
    app_two = one.an_app("two")
    changed, deleted = at_once(topic, two.asks("PATCH", f"/apps/{app_two}", {"name": "x"}), one.asks("DELETE", f"/apps/{app_two}"))
    assert (changed.status_code, deleted.status_code) == (200, 204)
    for core in (*cores, OneCore(topic, "late")):
        assert core.registry.key(f"{app}.{key}").status == 1
        assert core.registry.app(app_two) is None


def test_of_two_namespaces_of_one_name_the_second_is_told(topic, cores):
    app = cores[0].an_app()
    answers = at_once(topic, *(core.asks("POST", f"/apps/{app}/namespaces", {"id": "chat"}) for core in cores))
    assert sorted(answer.status_code for answer in answers) == [201, 422]


def test_after_compaction_a_new_core_sees_what_the_others_see(topic, cores):
    one, two = cores
    app = one.an_app()
    keys = [one.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})["id"] for _ in range(3)]
    for key in keys:
        at_once(topic, *(core.asks("PATCH", f"/apps/{app}/keys/{key}", {"name": core.control._core}) for core in (one, two)))
    late = OneCore(topic, "late")
    assert state(late) == state(one) == state(two)


def test_a_core_that_dies_after_it_came_second_leaves_it_to_the_others(topic, cores):
    one, _ = cores
    app = one.an_app()
    entry = one.control.ledger.get("app", app)
    late = {**entry.data, "name": "from a core that read too little", "change": "dead"}
    for core in cores:
        core.reads(entry.key, json.dumps(late).encode())
    topic.records.append((entry.key, json.dumps(late).encode()))
    assert one.registry.app(app).name == "web"
    assert one.control.upkeep(0.0, one.now_ms, 10) == []
    ((key, value),) = one.control.upkeep(1e12, one.now_ms, 10)
    assert (key, value) == (entry.key, entry.raw)
    topic.write(one, 1, key, value)
    assert OneCore(topic, "new").registry.app(app).name == "web"
    assert one.control.upkeep(1e12, one.now_ms, 10) == []


def test_deleted_and_revoked_records_get_tombstones_after_thirty_days(topic, cores):
    one, _ = cores
    app, gone = one.an_app(), one.an_app("gone")
    key = one.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})["id"]
    lost = one.made(f"/apps/{gone}/keys", {"name": "k", "capability": {"*": ["*"]}})["id"]
    one.ask("POST", f"/apps/{app}/keys/{key}/revoke")
    one.ask("DELETE", f"/apps/{gone}")
    assert one.control.upkeep(0.0, one.now_ms, 10) == [(f"key:{gone}.{lost}", None)]
    due = one.control.upkeep(0.0, one.now_ms + KEPT_MS, 10)
    assert {key for key, value in due if value is None} == {f"key:{app}.{key}", f"app:{gone}", f"key:{gone}.{lost}"}
    for record in due:
        topic.write(one, 1, *record)
    assert one.control.upkeep(0.0, one.now_ms + KEPT_MS, 10) == []
    assert one.ask("GET", f"/apps/{app}/keys").json() == []


def test_secrets_are_sealed_anew_under_the_key_that_signs(topic, cores):
    app = cores[0].an_app()
    made = cores[0].made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})
    new = ("k2", b"\2" * 32)
    others = {cores[1].made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})["id"] for _ in range(3)}
    started = OneCore(topic, "core-3", ring=[new, *RING], limits=CoreLimits(control_upkeep_records=2))

    async def start() -> None:
        running = asyncio.create_task(started.writer.run())
        await asyncio.sleep(0.05)
        running.cancel()

    asyncio.run(start())
    assert list(started.control.reseal(10)) == []
    without_the_old = OneCore(topic, "core-4", ring=[new])
    assert len(without_the_old.registry.app(app).keys) == 1 + len(others)
    assert without_the_old.registry.key(f"{app}.{made['id']}").secret == made["key"].partition(":")[2]


def test_the_audit_is_bounded_and_readings_do_not_crowd_out_changes(topic):
    core = OneCore(topic, limits=CoreLimits(audit_records=3))
    app = core.an_app()
    core.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})
    for _ in range(5):
        core.ask("GET", f"/apps/{app}/keys")
    for record in core.control.upkeep(0.0, core.now_ms, 100):
        topic.write(core, 1, *record)
    entries = core.audit()
    assert len([one for one in entries if one["outcome"] == "shown"]) == 3
    assert [one["action"] for one in entries if one["outcome"] == "applied"] == ["key.create", "app.create"]
    assert {one["id"] for one in OneCore(topic, "late").audit()} == {one["id"] for one in entries}


def test_kafka_that_does_not_answer_is_no_success(topic):
    core = OneCore(topic)
    core.write = lambda ticket, key, value: core.writer.took(_failed(ticket))
    answer = core.ask("POST", "/accounts/tidegate/apps", {"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (503, 50003)


def test_a_secret_is_not_shown_when_the_audit_cannot_have_it(topic):
    core = OneCore(topic)
    app = core.an_app()
    core.made(f"/apps/{app}/keys", {"name": "k", "capability": {"*": ["*"]}})
    core.write = lambda ticket, key, value: core.writer.took(_failed(ticket))
    answer = core.ask("GET", f"/apps/{app}/keys")
    assert answer.status_code == 503
    assert core.ask("GET", f"/apps/{app}/keys", token="reader").json()[0]["key"] is None


def _failed(ticket: int) -> Any:
    from core.events import ConfigWritten

    return ConfigWritten(ticket, False)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 4), st.integers(0, 3), st.booleans()), max_size=30))
def test_every_reader_of_the_log_agrees_and_repairs_hold_after_compaction(writes):
    """Whatever revisions come in which order: readers agree, and once repaired, what compaction leaves tells the same."""
    records = [
        (f"app:{name}", json.dumps({"rev": rev, "change": f"c{number}", "name": str(body), "deleted": deleted}).encode())
        for number, (name, rev, body, deleted) in enumerate(writes)
    ]
    whole = Ledger()
    highest: dict[str, int] = {}
    for key, value in records:
        rev = json.loads(value)["rev"]
        assert whole.read(key, value, 0.0) == (rev > highest.get(key, 0)), "the first of its revision, and none older"
        highest[key] = max(rev, highest.get(key, 0))
    assert whole.repairs(OVERLAID_S / 2) == []
    for repair in whole.repairs(OVERLAID_S):
        records.append(repair)
        assert not whole.read(*repair, 0.0)
    assert whole.repairs(1e9) == []
    last = dict(records)
    fresh = Ledger()
    for key, value in last.items():
        fresh.read(key, value, 0.0)
    assert [(e.key, e.raw) for e in fresh.of("app")] == sorted(
        [(e.key, e.raw) for e in whole.of("app")], key=lambda e: list(last).index(e[0])
    )
