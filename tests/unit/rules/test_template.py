"""Routing key grammar (Ably protocol docs, Kafka rules, routing key): one row each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.rules.template import Template, TemplateError, fingerprint, in_base
from relay.model.message import Message

MESSAGE = Message(
    id="conn:1:0",
    name="greet",
    client_id="bob",
    extras={"headers": {"x": "y", "n": 7, "f": 1.5, "w": 2.0, "b": True, "z": None, "a b": "c"}},
)
HELLO = 0x248BFA47  # MurmurHash3 x86 32, seed 0, of "hello"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("", ""),
        ("orders", "orders"),
        ("orders:key", "orders:key"),
        ("#{channelName}", "chat:lobby"),
        ("t:#{channelName}", "t:chat:lobby"),
        ("t:#{ channelName }", "t:chat:lobby"),
        ("#{message.name}", "greet"),
        ("#{message.id}", "conn:1:0"),
        ("#{message.clientId}", "bob"),
        ("a#{message.name}b#{message.clientId}c", "agreetbbobc"),
        ("#{message.extras.headers['x']}", "y"),
        ("#{message.extras.headers['a b']}", "c"),
        ("#{message.extras.headers['n']}", "7"),
        ("#{message.extras.headers['f']}", "1.5"),
        ("#{message.extras.headers['w']}", "2"),
        ("#{message.extras.headers['b']}", "true"),
        ("#{message.extras.headers['z']}", ""),
        ("#{message.extras.headers['missing']}", ""),
        ("# {x} $1 \\1 }", "# {x} $1 \\1 }"),
    ],
)
def test_interpolates(template: str, text: str) -> None:
    assert Template(template).render("chat:lobby", MESSAGE) == text


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("#{channelName | hash}", "248bfa47"),
        ("#{channelName|hash}", "248bfa47"),
        ("#{channelName | hash(16)}", "248bfa47"),
        ("#{channelName | hash(10)}", str(HELLO)),
        ("#{channelName | hash( 2 )}", f"{HELLO:b}"),
        ("#{channelName | moduloHash(10)}", str(HELLO % 10)),
        ("#{channelName | moduloHash(100, 10)}", str(HELLO % 100)),
        ("#{channelName | moduloHash(100)}", f"{HELLO % 100:x}"),
        ("#{(channelName) | hash}", "248bfa47"),
        ("#{(channelName, message.name) | hash(10)}", str(fingerprint(b"hello\x1fgreet"))),
        ("#{( channelName , message.name ) | moduloHash(7, 10)}", str(fingerprint(b"hello\x1fgreet") % 7)),
    ],
)
def test_filters(template: str, text: str) -> None:
    assert Template(template).render("hello", MESSAGE) == text


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("#{}", "expected one of channelName"),
        ("#{channel}", "expected one of channelName"),
        ("#{message.data}", "expected one of channelName"),
        ("#{channelName", "expected }"),
        ("#{channelName | upper}", "expected a filter"),
        ("#{channelName | hash(1)}", "a base must lie between 2 and 36"),
        ("#{channelName | hash(37)}", "a base must lie between 2 and 36"),
        ("#{channelName | hash()}", "expected a number"),
        ("#{channelName | moduloHash}", "expected ("),
        ("#{channelName | moduloHash(0)}", "buckets must lie"),
        ("#{channelName | moduloHash(3, 99)}", "a base must lie between 2 and 36"),
        ("#{(channelName, message.name)}", "a tuple needs a filter"),
        ("#{(channelName, message.name | hash}", "expected )"),
        ("#{message.extras.headers}", "expected ['name']"),
        ("#{message.extras.headers['']}", "expected ['name']"),
        ('#{message.extras.headers["x"]}', "expected ['name']"),
        ("#{channelName | hash | hash}", "expected }"),
        ("x" * 5000, "longer than"),
    ],
)
def test_refuses(template: str, reason: str) -> None:
    with pytest.raises(TemplateError) as refused:
        Template(template)
    assert reason in str(refused.value)


def test_values_are_taken_literally() -> None:
    """A value that looks like a template is not evaluated again."""
    assert Template("#{channelName}:#{message.name}").render("#{message.id}", MESSAGE) == "#{message.id}:greet"


@pytest.mark.parametrize(
    ("data", "value"),
    [(b"", 0), (b"test", 0xBA6BD213), (b"Hello, world!", 0xC0363E43), (b"The quick brown fox jumps over the lazy dog", 0x2E4FF723)],
)
def test_fingerprint_is_murmur3(data: bytes, value: int) -> None:
    assert fingerprint(data) == value


@given(st.integers(0, 2**32 - 1), st.integers(2, 36))
def test_in_base_is_what_int_reads(number: int, base: int) -> None:
    assert int(in_base(number, base), base) == number


PIECES = st.sampled_from(
    [
        "#{",
        "}",
        "channelName",
        "message.name",
        "message.extras.headers['",
        "']",
        "(",
        ")",
        ",",
        "|",
        "hash",
        "moduloHash",
        "7",
        " ",
        ":",
        "t",
    ]
)


@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=14).map("".join)), st.text(max_size=20), st.text(max_size=20))
def test_any_text_parses_or_is_refused(template: str, channel: str, name: str) -> None:
    try:
        parsed = Template(template)
    except TemplateError:
        return
    text = parsed.render(channel, Message(name=name))
    assert text == parsed.render(channel, Message(name=name))
    if "#{" not in template:
        assert text == template
