"""Channel names. Ably protocol docs, 3.1 and 3.2."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.model.channel import log_key, namespace_of, parse_channel, partition_of
from relay.model.errors import RelayError
from relay.model.limits import PROTOCOL
from tests.support.refusals import code_or


@pytest.mark.parametrize("text", ["a", "chat:lobby", "foo*", "*", "a:", "a::b", "a]b", "a[b", "Ünïcode 🙂", " ", "?x=1", "x" * 2048])
def test_an_ordinary_name_means_itself(text):
    channel = parse_channel(text)
    assert (channel.text, channel.name, channel.path, channel.log_name) == (text, text, text, text)
    assert channel.params == {}
    assert channel.qualifier is None


@pytest.mark.parametrize("text", ["", ":hell", "::", "a\nb", "a\r", "x" * 2049, "ü" * 1025, "\ud800"])
def test_an_invalid_name_is_refused(text):
    with pytest.raises(RelayError) as refused:
        parse_channel(text)
    assert refused.value.code == 40010
    assert refused.value.info.status_code == 400


@pytest.mark.parametrize(
    "text",
    [
        *("[", "[]x", "[foo", "[foo]x", "[*]x", "[queue]x", "[Meta]x", "[meta=1]x", "[filter]x", "[filter=]x"),
        *("[meta]", "[?rewind=1]", "[meta]:x", "[?rewind=1]:x", "[meta][meta]x", "[?a=1][?b=2]x", "[meta][?a=1]x", "[meta][filter=eA==]x"),
    ],
)
def test_an_unknown_or_misplaced_qualifier_is_refused(text):
    with pytest.raises(RelayError, match=r"qualifier") as refused:
        parse_channel(text)
    assert refused.value.code == 40010


def test_inline_params_are_not_part_of_the_name_but_of_what_is_answered():
    channel = parse_channel("[?rewind=2m&delta=vcdiff]chat:lobby")
    assert channel.text == "[?rewind=2m&delta=vcdiff]chat:lobby"
    assert channel.name == "chat:lobby"
    assert channel.params == {"rewind": "2m", "delta": "vcdiff"}
    assert channel.qualifier is None


def test_inline_params_are_percent_decoded_and_may_be_empty():
    assert parse_channel("[?a=%C3%BC+x&b=&c]n").params == {"a": "ü x", "b": "", "c": ""}
    assert parse_channel("[?]n").name == "n"


@pytest.mark.parametrize("text", ["[?rewind=1][meta]log", "[meta?rewind=1]log"])
def test_params_go_with_a_qualifier_in_either_spelling(text):
    channel = parse_channel(text)
    assert (channel.name, channel.path, channel.params, channel.qualifier) == ("[meta]log", "log", {"rewind": "1"}, "meta")


def test_a_metachannel_has_a_log_of_its_own_and_a_derived_channel_reads_its_base():
    assert parse_channel("[meta]stats:minute").log_name == "[meta]stats:minute"
    derived = parse_channel("[filter=bmFtZQ==?rewind=1]chat:lobby")
    assert (derived.name, derived.qualifier, derived.qualifier_value) == ("[filter=bmFtZQ==]chat:lobby", "filter", "bmFtZQ==")
    assert derived.log_name == "chat:lobby"
    assert derived.resource == "[filter]chat:lobby"
    assert parse_channel("[meta?rewind=1]log").resource == "[meta]log"
    assert derived.params == {"rewind": "1"}


@given(st.text(alphabet=st.one_of(st.sampled_from("[]?=&:%*\n"), st.characters(exclude_categories=()))))
def test_any_text_is_a_channel_or_40010(text):
    channel = code_or(lambda: parse_channel(text))
    if channel == 40010:
        return
    assert channel.text == text
    again = parse_channel(channel.name)
    assert (again.name, again.params) == (channel.name, {}), "a name without its params is a name"
    assert log_key("app", channel.log_name)
    assert len(text.encode()) <= PROTOCOL.max_channel_name_bytes


@pytest.mark.parametrize(
    ("name", "namespace"),
    [
        ("chat:lobby:1", "chat"),
        ("chat", "chat"),
        ("[meta]chat:x", "chat"),
        ("[filter=eA==]chat:x", "chat"),
        ("[?a=1][meta]c:x", "c"),
        ("[x", "[x"),
    ],
)
def test_the_namespace_is_what_stands_before_the_first_colon(name, namespace):
    assert namespace_of(name) == namespace


def test_edge_and_core_hash_a_channel_alike():
    key = log_key("app1", "chat:ü")
    assert key == "app1:chat:ü".encode()
    assert partition_of(key, 64) == zlib.crc32(key) % 64
    assert partition_of(b"app:channel", 4) == 1, "a change here would move every channel to another partition"
