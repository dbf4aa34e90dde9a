"""`[admin]` of core.toml."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from core.config import AdminListen
from relay.runtime.settings import Secret

SCOPES = ["reader"]


def admin(**more: Any) -> AdminListen:
    def hook(kind: type, value: Any) -> Any:
        return Secret(value) if kind is Secret else kind(value)

    return msgspec.convert({"port": 1, **more}, AdminListen, dec_hook=hook)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"certificate": "a.pem"}, "go together"),
        ({"client_ca": "a.pem"}, "client_ca needs certificate"),
        ({"clients": [{"name": "a@b", "scopes": SCOPES}]}, "needs client_ca"),
        ({"clients": [{"name": "spiffe://relay.test/edge/eu/e1", "scopes": SCOPES}]}, "edge or a core"),
        ({"clients": [{"name": "spiffe://relay.test/core/c1", "scopes": SCOPES}]}, "edge or a core"),
        ({"tokens": [{"id": "a", "secret": "x", "scopes": []}]}, "without scopes"),
        ({"tokens": [{"id": "a", "secret": "x", "scopes": ["root"]}]}, "root"),
        ({"tokens": [{"id": "a.b", "secret": "x", "scopes": SCOPES}]}, "id of an access token"),
        ({"tokens": [{"id": "a", "secret": "x y", "scopes": SCOPES}]}, "without spaces"),
        ({"tokens": [{"id": "a", "secret": "x", "scopes": SCOPES}] * 2}, "twice"),
        ({"account_id": ""}, "account_id"),
        ({"names": ["https://a.b"]}, "without scheme and port"),
        ({"names": ["a.b:9444"]}, "without scheme and port"),
        ({"names": [""]}, "no host name"),
        ({"names": ["*"]}, "no host name"),
        ({"peers": ["10.0.0.4:9444"]}, "https://HOST:PORT"),
        ({"peers": ["https://10.0.0.4:9444/v1"]}, "https://HOST:PORT"),
        ({"peers": ["file:///etc/passwd"]}, "https://HOST:PORT"),
        ({"peers": ["https://user@10.0.0.4"]}, "https://HOST:PORT"),
    ],
)
def test_what_cannot_be_used_is_refused(more, says):
    with pytest.raises(msgspec.ValidationError) as refused:
        admin(**more)
    assert says in str(refused.value)


def test_without_tokens_there_is_a_listener_and_nobody_may_use_the_control_api():
    assert admin().tokens == []
