"""What reaches the log, and what never does."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from relay.runtime import logs

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def test_json_for_machines() -> None:
    stream = io.StringIO()
    logs.configure("json", "info", stream)
    structlog.get_logger("edge.hub").info("link up", core="core-1", lanes=2)
    logging.getLogger("library").warning("odd: %s", "thing")
    structlog.get_logger("edge.hub").debug("not shown")
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert (first["event"], first["core"], first["lanes"], first["level"], first["logger"]) == ("link up", "core-1", 2, "info", "edge.hub")
    assert second["event"] == "odd: thing"
    assert first["timestamp"].endswith("Z")


def test_text_for_people() -> None:
    stream = io.StringIO()
    logs.configure("text", "info", stream)
    structlog.get_logger("edge.hub").info("link up", core="core-1")
    assert "link up core=core-1" in stream.getvalue().replace("[edge.hub] ", "")
    assert "\x1b" not in stream.getvalue()


@pytest.mark.parametrize("format", ["text", "json"])
def test_secrets_stay_out(format: logs.Format) -> None:
    stream = io.StringIO()
    logs.configure(format, "debug", stream)
    log = structlog.get_logger("test")
    log.info("request", path="/channels?key=app.key:topsecretvalue", token="topsecret", kafka_password="topsecret", payload=b"topsecret")
    log.info(f"connect wss://edge/?access_token={JWT}&v=5 failed", detail={"query": JWT}, key="abcd.efgh:topsecretvalue12")
    logging.getLogger("library").error("GET /?key=topsecret&v=3 %s", JWT)
    try:
        raise ValueError(f"/time?token=topsecret {JWT}")  # noqa: TRY301 - for its traceback
    except ValueError:
        log.exception("failed")
    text = stream.getvalue()
    assert "topsecret" not in text
    assert JWT not in text
    assert "c2lnbmF0dXJl" not in text
    assert "/channels?…" in text
    assert "abcd.efgh:[hidden]" in text


@pytest.mark.parametrize("text", ["[?rewind=1]news:uk", "who? me=you", "a plain sentence", "app.key", "12:34:56", "core-1:9001"])
def test_what_is_no_secret_stays(text: str) -> None:
    assert logs.redact(text) == text


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="no log level"):
        logs.configure("text", "loud", io.StringIO())
