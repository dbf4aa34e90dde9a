"""A driver that repeats itself does not fill a disk."""

from __future__ import annotations

import logging

from core.kafka import logs
from core.kafka.config import KafkaConfig
from core.kafka.logs import KINDS, LINES, SPAN_S, Moderation


class Page(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Book:
    def __init__(self) -> None:
        self.now = 0.0
        self.page = Page()
        self.log = logging.Logger("test")
        self.log.addFilter(Moderation(lambda: self.now))
        self.log.addHandler(self.page)

    def driver_says(self, facility: str, text: str, client: str = "tail#consumer-1") -> None:
        self.log.log(logging.WARNING, "%s [%s] %s", facility, client, text)


def test_a_facility_has_a_few_lines_a_minute_and_the_next_says_how_many_were_left_out():
    book = Book()
    for number in range(5_000):
        book.driver_says("METADATAUPDATE", f"partition {number}: 100% unknown")
    book.driver_says("FAIL", "broker down")
    assert len(book.page.lines) == LINES + 1
    assert book.page.lines[-1] == "FAIL [tail#consumer-1] broker down"
    book.now += SPAN_S
    book.driver_says("METADATAUPDATE", "again")
    assert book.page.lines[-1] == f"METADATAUPDATE [tail#consumer-1] again (and {5_000 - LINES} lines of this kind that were left out)"
    book.driver_says("METADATAUPDATE", "and again")
    assert book.page.lines[-1] == "METADATAUPDATE [tail#consumer-1] and again"


def test_what_is_counted_is_bounded():
    book = Book()
    for number in range(3 * KINDS):
        book.log.warning("topic %s could not be created", number)
    assert len(book.page.lines) == 3 * KINDS
    assert len(book.log.filters[0]._kinds) <= KINDS


def test_lines_of_every_driver_client_are_moderated():
    assert KafkaConfig(brokers="x:1").client("tail")["logger"] is logs.log
    assert any(isinstance(each, Moderation) for each in logs.log.filters)
