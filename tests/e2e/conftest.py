from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Error, sync_playwright

from tests.support.kafka import skip_or_fail
from tests.support.product import Product, product

STRANGER = "stranger.example"
"""A name that the browser takes for this machine's, as one does whose DNS has been led astray."""
BROWSER = ["--ignore-certificate-errors", "--no-sandbox", f"--host-resolver-rules=MAP {STRANGER} 127.0.0.1"]


@pytest.fixture(scope="package")  # closed when the last of them is through: four idle processes and what they ask Kafka for are not free
def relay(kafka_brokers: str) -> Iterator[Product]:
    """Two edges, two cores, a rule and a mapping, on a real Kafka that is shared by all tests of the run."""
    with product(
        "--edges", "2", "--cores", "2", "--kafka", kafka_brokers,
        "--rule", "^ruled:=ruled-topic", "--mapping", "mapped-topic=mapped:#{topic}:#{key}",
    ) as running:  # fmt: skip
        yield running


@pytest.fixture
def chromium() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=found, args=BROWSER)
        except Error as error:
            skip_or_fail(f"Chromium is missing ({str(error).splitlines()[0]})")
        yield browser
        browser.close()
