from __future__ import annotations

import pytest

from tests.unit.control.cores import OneCore, Topic


@pytest.fixture
def topic() -> Topic:
    return Topic()


@pytest.fixture
def core(topic) -> OneCore:
    return OneCore(topic)
