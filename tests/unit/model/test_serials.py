"""Serials: text order is log order. Ably protocol docs, 3.4 and 4.7."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model.serials import Serial, message_serial, parse_message_serial

STREAMS = st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=8, max_size=8)
SERIALS = st.builds(Serial, STREAMS, st.integers(0, 9_999), st.integers(0, 10**16 - 1))


def test_the_form():
    assert Serial("k3j9x0ab", 7, 123).text == "k3j9x0ab-0007-0000000000000123"
    assert message_serial(Serial("k3j9x0ab", 7, 123).text, 12) == "k3j9x0ab-0007-0000000000000123:012"


@given(SERIALS)
def test_a_serial_survives_its_text(serial):
    assert Serial.parse(serial.text) == serial


@given(SERIALS, st.integers(0, 999))
def test_a_message_serial_survives_its_text(serial, index):
    assert parse_message_serial(message_serial(serial.text, index)) == (serial, index)


@given(
    STREAMS,
    st.integers(0, 9_999),
    st.tuples(st.integers(0, 10**16 - 1), st.integers(0, 999)),
    st.tuples(st.integers(0, 10**16 - 1), st.integers(0, 999)),
)
def test_text_order_is_log_order(stream, partition, one, other):
    texts = [message_serial(Serial(stream, partition, offset).text, index) for offset, index in (one, other)]
    assert (texts[0] < texts[1]) == (one < other)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            None,
            7,
            b"k3j9x0ab-0007-0000000000000123",
            "k3j9x0ab-0007-123",
            "K3J9X0AB-0007-0000000000000123",
            "k3j9x0ab-0007--000000000000123",
        ),
        *(
            "k3j9x0ab-0007-0000000000000123\n",
            "k3j9x0ab-0007-000000000000012٣",
            " k3j9x0ab-0007-0000000000000123",
            "k3j9x0ab-0007-0000000000000123:000",
        ),
    ],
)
def test_what_we_never_wrote_is_no_serial(text):
    assert Serial.parse(text) is None


@pytest.mark.parametrize("text", ["", None, "k3j9x0ab-0007-0000000000000123", "k3j9x0ab-0007-0000000000000123:1", "x:000"])
def test_what_we_never_wrote_is_no_message_serial(text):
    assert parse_message_serial(text) is None


@given(st.text())
def test_any_text_is_a_serial_or_none(text):
    assert Serial.parse(text) is None or Serial.parse(text).text == text
