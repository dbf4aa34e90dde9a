"""core.toml: what is accepted, and what a wrong setting is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from core.config import CoreConfig
from core.registry import Registry
from relay.runtime.settings import SettingsError, load

GOOD = """
node = "core-1"
dev = true

[link]
port = 9001
trust_domain = "relay.example"
certificate = "c.pem"
private_key = "c.key"
ca = "ca.pem"

[admin]
port = 9002

[metrics]
port = 9003

[kafka]
brokers = "127.0.0.1:9092"

[[keyring]]
id = "k1"
secret = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="

[[apps]]
id = "shop"

[[apps.keys]]
id = "web"
secret = "0123456789abcdef"
capability = '{"chat:*":["publish"]}'

[[apps.keys]]
id = "server"
secret_env = "SERVER_SECRET"
capability = { "*" = ["*"] }

[[apps.namespaces]]
id = "persisted"
persisted = true

[[apps.rules]]
id = "out"
target = { routing_key = "topic:#{channelName}" }

[[apps.mappings]]
id = "in"
topics = ["scores"]
channel = "score:#{key}"
"""
ENVIRON = {"SERVER_SECRET": "fedcba9876543210"}


def read(directory: Path, text: str) -> CoreConfig:
    for name in ("c.pem", "c.key", "ca.pem"):
        (directory / name).write_text("")
        (directory / name).chmod(0o600)
    (directory / "core.toml").write_text(text)
    return load(CoreConfig, directory / "core.toml", environ=ENVIRON)


def test_the_example_gives_apps_and_a_ring(tmp_path):
    config = read(tmp_path, GOOD)
    ring = config.ring()
    registry = Registry(config.static_apps(), ring)
    key: Any = registry.key("shop.web")
    assert key.secret == "0123456789abcdef"
    assert key.capability.canonical() == '{"chat:*":["publish"]}'
    assert registry.key("shop.server").secret == "fedcba9876543210"
    assert registry.app("shop").namespaces["persisted"].persisted
    assert registry.key("shop.none") is registry.key("none") is registry.key("") is None
    assert ring.ids == ("k1",)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('id = "server"', 'id = "web"', "apps[0]: key 'web' is there twice"),
        ('[[apps]]\nid = "shop"', '[[apps]]\nid = "shop"\n[[apps]]\nid = "shop"', "app 'shop' is there twice"),
        ('id = "shop"', 'id = "sh:op"', "the id of an app must be"),
        ("""'{"chat:*":["publish"]}'""", """'{"chat:*":["fly"]}'""", "apps[0].keys[0]: invalid capability: unknown operation"),
        ("""'{"chat:*":["publish"]}'""", "'nonsense'", "invalid capability: not JSON"),
        ('"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="', '"AQEB"', "keyring[0]: the secret must be 32 bytes, is 3"),
        ('"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="', '"?"', "keyring[0]: the secret must be 32 bytes in base64 or hex"),
        ("dev = true", "dev = false\nsandbox = true", "sandbox is for tests"),
        ("dev = true\n", 'dev = false\n[kafka]\nbrokers = ""\n', None),
        ('node = "core-1"', 'node = ""', "node must be"),
        ("port = 9001", "port = 9001\nports = 1", "link.ports: there is no such setting"),
        ('topics = ["scores"]', 'topics = ["tidegate.log"]', "mapping 'in' of app 'shop'"),
        ('"topic:#{channelName}"', '"#{nonsense"', "rule 'out' of app 'shop'"),
        ('id = "persisted"', 'id = "a:b"', "the id of a namespace"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, old, new, says):
    assert old in GOOD
    with pytest.raises(SettingsError) as caught:
        read(tmp_path, GOOD.replace(old, new, 1))
    line = str(caught.value)
    assert "\n" not in line
    assert "0123456789abcdef" not in line
    if says is not None:
        assert says in line


def test_short_secrets_are_for_dev_only(tmp_path):
    text = GOOD.replace('"0123456789abcdef"', '"short"')
    read(tmp_path, text)
    with pytest.raises(SettingsError, match=r"key shop\.web is shorter than 16"):
        read(tmp_path, text.replace("dev = true", "dev = false"))


def test_a_ring_key_in_hex(tmp_path):
    config = read(tmp_path, GOOD.replace("AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=", "01" * 32))
    assert config.keyring[0].bytes_of() == b"\1" * 32
