"""Logs: text for people, JSON for machines, and in both no credential, query string or payload.

`configure` is called once, by the command line. Modules take a logger with `structlog.get_logger("edge.hub")` and log events as a short
phrase plus fields: `log.info("link up", core="core-1", lane="live")`. Libraries that use `logging` go through the same processors.
"""

from __future__ import annotations

import logging
import re
import sys
from typing import Literal, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["text", "json"]

HIDDEN = "[hidden]"

SECRET_FIELDS = frozenset(
    [
        *("token", "accesstoken", "access_token", "jwt", "key_secret", "secret", "password", "credential", "authorization", "cookie"),
        *("query", "query_string", "payload", "data", "private_key", "connection_key", "connectionkey", "grant"),
    ]
)
"""Fields that are hidden whatever they hold; so is every field whose name ends in `_secret`, `_token` or `_password`."""

_QUERY = re.compile(r"(?<=[\w/.~%-])\?[^\s\"'<>]*=[^\s\"'<>]*")
"""`?` after a path, with a `=` in what follows. A channel's qualifier (`[?rewind=1]news`) has no path before it and stays."""
_JWT = re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*")
_API_KEY = re.compile(r"\b([\w-]{2,}\.[\w-]{2,}):[\w+/=-]{12,}")
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)


def redact(text: str) -> str:
    """`text` without query strings, JWTs, secrets of API keys and private keys. The last line of defence, not the first."""
    if "?" in text:
        text = _QUERY.sub("?…", text)
    if "eyJ" in text:
        text = _JWT.sub(HIDDEN, text)
    if ":" in text:
        text = _API_KEY.sub(rf"\1:{HIDDEN}", text)
    if "-----BEGIN" in text:
        text = _PEM.sub(HIDDEN, text)
    return text


def hide_secrets(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """structlog processor: hide secret fields, and clean the text of all others."""
    for name, value in event.items():
        lower = name.lower()
        if lower in SECRET_FIELDS or lower.endswith(("_secret", "_token", "_password")):
            event[name] = HIDDEN
        elif isinstance(value, str):
            event[name] = redact(value)
        elif isinstance(value, bytes | bytearray | memoryview):
            event[name] = f"{len(value)} bytes"
        elif value is not None and not isinstance(value, int | float):
            event[name] = redact(str(value))
    return event


def configure(format: Format = "text", level: str = "info", stream: TextIO | None = None) -> None:
    """Send every log line of this process to `stream` (standard error unless told otherwise), from `level` upwards.

    Raises: ValueError if `level` is not one of debug, info, warning, error.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"no log level {level!r}: debug, info, warning or error")
    stream = stream if stream is not None else sys.stderr
    machine = format == "json"
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso" if machine else "%H:%M:%S.%f", utc=machine),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,  # to text here, so that it is cleaned too
        hide_secrets,
    ]
    render: Processor
    if machine:
        render = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        render = structlog.dev.ConsoleRenderer(colors=stream.isatty(), pad_event_to=0)
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.PositionalArgumentsFormatter(), *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(number)
    for chatty in ("asyncio", "aiofastnet", "hypercorn.error", "picows", "httpx", "httpcore"):
        logging.getLogger(chatty).setLevel(max(number, logging.WARNING))
    logging.getLogger("aiofastnet").addFilter(_says_something)


def _says_something(record: logging.LogRecord) -> bool:
    """aiofastnet warns of writes to a peer that is gone, as often as any peer likes; that it is gone is learnt otherwise."""
    return record.msg != "SSL connection is closed"
