"""Sample records: what is read of them, and what `tidegate mappings test` shows."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from core.mappings.preview import read_sample
from tests.support.registry import Registered, framed, schema_registry
from tidegate.cli import app

CONFIG = """
[[apps]]
id = "shop"
[[apps.mappings]]
id = "orders"
topic_pattern = "orders.*"
channel = "orders:#{key}:#{value.lines[0].sku}"
message_name = "#{headers.kind}"
on_failed_record_mapping = "skip"
[[apps.mappings]]
id = "raw"
topics = ["orders"]
channel = "raw"
value = "bytes"
"""


def shown(directory: Path, config: str, sample: dict[str, Any], *options: str) -> tuple[int, Any]:
    (directory / "core.toml").write_text(config)
    ran = CliRunner().invoke(app, ["mappings", "test", json.dumps(sample), "-c", str(directory / "core.toml"), *options])
    return ran.exit_code, json.loads(ran.stdout) if "--json" in options and ran.exit_code < 2 else ran.output


def test_a_sample_record() -> None:
    record = read_sample({"topic": "t", "key": {"base64": "/w=="}, "value": {"a": "é"}, "headers": {"h": "1", "n": None}, "offset": 3})
    assert record == ("t", 0, 3, b"\xff", '{"a": "é"}'.encode(), [("h", b"1"), ("n", None)])
    assert read_sample({"topic": "t"}) == ("t", 0, 0, None, None, [])


@pytest.mark.parametrize(
    "sample",
    [
        *(None, [], {}, {"topic": 5}, {"topic": "t", "nope": 1}, {"topic": "t", "headers": []}, {"topic": "t", "offset": -1}),
        *({"topic": "t", "partition": True}, {"topic": "t", "value": {"base64": "!"}}),
    ],
)
def test_samples_that_are_none(sample: object) -> None:
    with pytest.raises(ValueError, match=r"record|headers|partition|base64"):
        read_sample(sample)


def test_what_a_record_would_become(tmp_path: Path) -> None:
    sample = {"topic": "orders", "key": "42", "value": {"lines": [{"sku": "s"}]}, "headers": {"kind": "new"}}
    code, found = shown(tmp_path, CONFIG, sample, "--json")
    assert code == 0
    extras = {"headers": {"kind": "new"}, "kafka": {"key": "42"}}
    text = '{"lines": [{"sku": "s"}]}'
    assert found["mappings"] == [
        {
            "app": "shop",
            "mapping": "orders",
            "channel": "orders:42:s",
            "message": {"id": "orders:0:0:0", "name": "new", "data": text, "encoding": "json", "extras": extras},
        },
        {
            "app": "shop",
            "mapping": "raw",
            "channel": "raw",
            "message": {"id": "orders:0:0:0", "data": base64.b64encode(text.encode()).decode(), "encoding": "base64", "extras": extras},
        },
    ]
    _, table = shown(tmp_path, CONFIG, sample, "--mapping", "orders")
    assert "orders:42:s" in table
    assert "raw" not in table


def test_the_environment_of_a_core_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names settings that are nothing to a mapping."""
    monkeypatch.setenv("TIDEGATE_KAFKA__BROKERS", "kafka-1:9092")
    monkeypatch.setenv("TIDEGATE_LINK__PORT", "9001")
    monkeypatch.setenv("TIDEGATE_LIMITS__MAX_MESSAGE_BYTES", "10")
    code, found = shown(tmp_path, CONFIG, {"topic": "orders", "value": "more than ten bytes"}, "--mapping", "raw", "--json")
    assert (code, [each["reason"] for each in found["mappings"]]) == (1, ["oversize"])


def test_a_record_that_becomes_nothing(tmp_path: Path) -> None:
    code, found = shown(tmp_path, CONFIG, {"topic": "orders-eu"}, "--json")
    assert code == 1
    (outcome,) = found["mappings"]
    assert (outcome["reason"], outcome["then"]) == ("no_text", "skip")
    assert shown(tmp_path, CONFIG, {"topic": "other"}) == (1, "no mapping reads the topic other\n")


def test_mistakes_are_told_in_one_line(tmp_path: Path) -> None:
    for config, sample, options, told in (
        (CONFIG, {"topic": "t", "x": 1}, [], "'x' is not part of a record"),
        (CONFIG, {"topic": "t"}, ["--mapping", "nope"], "there is no mapping 'nope'"),
        (CONFIG.replace("#{key}", "#{nope}"), {"topic": "t"}, [], "#{nope} is not a placeholder"),
    ):
        code, output = shown(tmp_path, config, sample, *options)
        assert code == 2
        assert told in output
        assert output.count("\n") == 1


def test_a_record_with_a_schema(tmp_path: Path) -> None:
    with schema_registry() as registry:
        registry.add(7, Registered("AVRO", '"string"'))
        config = f"""
[schema_registry]
url = "{registry.url}"
[[apps]]
id = "shop"
[[apps.mappings]]
id = "m"
topics = ["t"]
channel = "c"
value = "avro"
"""
        for schema, outcome in ((7, {"data": "a"}), (8, None)):
            value = {"base64": base64.b64encode(framed(schema, b"\x02a")).decode()}
            code, found = shown(tmp_path, config, {"topic": "t", "value": value}, "--json")
            (only,) = found["mappings"]
            if outcome:
                assert (code, only["message"]["data"]) == (0, "a")
            else:
                assert (code, only["reason"]) == (1, "unknown_schema")
