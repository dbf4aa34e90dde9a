"""Settings are accepted whole or refused with file, field and reason."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec
import pytest

from relay.runtime.settings import File, PrivateFile, Secret, SettingsError, load


class Listen(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    host: str = "127.0.0.1"
    port: int = 8443
    idle_s: float = 15.0
    plain: bool = False
    certificate: File | None = None
    private_key: PrivateFile | None = None


class Key(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    secret: Secret


class App(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    id: str
    keys: tuple[Key, ...] = ()


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    node: str
    dev: bool = False
    basic_auth: Literal["refuse", "rest", "all"] = "refuse"
    cores: tuple[str, ...] = ()
    listen: Listen = Listen()
    apps: tuple[App, ...] = ()
    keyring: tuple[Key, ...] = ()
    admin_token: Secret | None = None
    properties: dict[str, str] = {}


Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(text: str, **files: str) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.write_text(content)
            path.chmod(0o600)
        path = tmp_path / "edge.toml"
        path.write_text(text)
        return path

    return make


def loaded(path: Path, environ: dict[str, str] | None = None) -> Settings:
    return load(Settings, path, environ=environ or {})


def test_defaults_fill_what_is_not_said(write: Write) -> None:
    settings = loaded(write('node = "e1"\n[listen]\nport = 9443\nidle_s = 5\n'))
    assert settings.listen == Listen(port=9443, idle_s=5.0)
    assert settings.basic_auth == "refuse"


REFUSED: dict[str, tuple[str, str, str]] = {
    "unknown field": ('node = "e"\n[listen]\nporto = 1', "listen.porto", "there is no such setting"),
    "unknown at top": ('node = "e"\nnodes = 1', "nodes", "there is no such setting"),
    "missing": ("dev = true", "node", "must be set"),
    "ill-typed": ('node = "e"\n[listen]\nport = "80"', "listen.port", "expected int, got str"),
    "a truth that is none": ('node = "e"\ndev = 1', "dev", "expected bool, got int"),
    "not one of": ('node = "e"\nbasic_auth = "some"', "basic_auth", "invalid enum value 'some'"),
    "in an array of tables": ('node = "e"\n[[apps]]\nid = "a"\n[[apps.keys]]\nid = 1\nsecret = "s"', "apps[0].keys[0].id", "expected str"),
    "missing in an array": ('node = "e"\n[[apps]]\nid = "a"\n[[apps.keys]]\nid = "k"', "apps[0].keys[0].secret", "must be set"),
    "a secret that is no text": ('node = "e"\nadmin_token = 5', "admin_token", "expected text, got int"),
    "two spellings of a secret": (
        'node = "e"\n[[keyring]]\nid = "k"\nsecret = "s"\nsecret_env = "S"',
        "keyring[0].secret",
        "give one of secret, secret_env",
    ),
    "an unset variable": ('node = "e"\nadmin_token_env = "NONE"', "admin_token_env", "the environment variable NONE is not set"),
    "a missing secret file": ('node = "e"\nadmin_token_file = "none"', "admin_token_file", "cannot be read: No such file"),
    "a missing file": ('node = "e"\n[listen]\ncertificate = "none.pem"', "listen.certificate", "cannot be read: No such file"),
    "a directory": ('node = "e"\n[listen]\ncertificate = "."', "listen.certificate", "is not a readable file"),
    "not TOML": ("node = ", "", "is not TOML"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_file_field_and_reason(case: str, write: Write) -> None:
    text, field, reason = REFUSED[case]
    path = write(text)
    with pytest.raises(SettingsError) as caught:
        loaded(path)
    assert (caught.value.file, caught.value.field) == (str(path), field)
    assert reason in caught.value.reason
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        loaded(tmp_path / "none.toml")


def test_secrets_by_value_file_and_environment_at_any_depth(write: Write) -> None:
    settings = loaded(
        write(
            """
            node = "e"
            admin_token_env = "ADMIN"
            [[keyring]]
            id = "k1"
            secret_file = "k1.txt"
            [[apps]]
            id = "a"
            [[apps.keys]]
            id = "x"
            secret = "in the file"
            [[apps.keys]]
            id = "y"
            secret_env = "Y"
            """,
            **{"k1.txt": "from a file\n"},
        ),
        {"ADMIN": "admin", "Y": "from y"},
    )
    assert settings.admin_token is not None
    assert settings.admin_token.reveal() == "admin"
    assert settings.keyring[0].secret.reveal() == "from a file"
    assert [key.secret.reveal() for key in settings.apps[0].keys] == ["in the file", "from y"]


def test_a_secret_does_not_show_itself(write: Write) -> None:
    settings = loaded(write('node = "e"\nadmin_token = "hush"'))
    assert "hush" not in f"{settings!r} {settings.admin_token} {[settings.admin_token]}"
    with pytest.raises(TypeError):
        pickle.dumps(settings.admin_token)
    with pytest.raises(TypeError):
        copy.copy(settings.admin_token)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('admin_token_file = "secret"', "admin_token_file"),
        ('[[keyring]]\nid = "k"\nsecret_file = "secret"', "keyring[0].secret_file"),
        ('[listen]\nprivate_key = "secret"', "listen.private_key"),
    ],
)
def test_secret_files_that_others_may_read_are_refused_outside_dev(mode: int, text: str, field: str, write: Write, tmp_path: Path) -> None:
    path = write(f'node = "e"\n{text}', secret="hush")
    loaded(path)
    (tmp_path / "secret").chmod(mode)
    with pytest.raises(SettingsError) as caught:
        loaded(path)
    assert caught.value.field == field
    assert f"mode {mode:04o}" in caught.value.reason
    assert "hush" not in str(caught.value)
    loaded(write(f'node = "e"\ndev = true\n{text}'))
    loaded(path.parent / "edge.toml", {"TIDEGATE_DEV": "true"})


def test_files_are_relative_to_the_settings(write: Write, tmp_path: Path) -> None:
    settings = loaded(write('node = "e"\n[listen]\ncertificate = "cert.pem"\nprivate_key = "key.pem"', **{"cert.pem": "", "key.pem": ""}))
    assert settings.listen.certificate == tmp_path / "cert.pem"
    assert isinstance(settings.listen.private_key, PrivateFile)


def test_the_environment_lies_over_the_file(write: Write) -> None:
    path = write('node = "e"\n[listen]\nport = 1')
    settings = loaded(
        path,
        {
            "TIDEGATE_LISTEN__PORT": "2",
            "TIDEGATE_LISTEN__HOST": "0.0.0.0",
            "TIDEGATE_LISTEN__IDLE_S": "2.5",
            "TIDEGATE_NODE": "7",
            "TIDEGATE_DEV": "true",
            "TIDEGATE_CORES": '["a:1", "b:2"]',
            "TIDEGATE_BASIC_AUTH": "rest",
            "TIDEGATE_ADMIN_TOKEN": "t",
            "TIDEGATE_LOG": "left to others",
            "PATH": "/bin",
        },
    )
    assert settings.listen == Listen(host="0.0.0.0", port=2, idle_s=2.5)
    assert (settings.node, settings.dev, settings.cores, settings.basic_auth) == ("7", True, ("a:1", "b:2"), "rest")
    assert settings.admin_token == Secret("t")


def test_the_environment_names_where_a_secret_is(write: Write) -> None:
    path = write('node = "e"', secret="hush")
    assert loaded(path, {"TIDEGATE_ADMIN_TOKEN_FILE": "secret"}).admin_token == Secret("hush")
    assert loaded(path, {"TIDEGATE_ADMIN_TOKEN_ENV": "X", "X": "x"}).admin_token == Secret("x")


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("TIDEGATE_LISTEN__PORTO", "1", "no such setting as listen.porto"),
        ("TIDEGATE_LISTEN__PORT__X", "1", "no such setting"),
        ("TIDEGATE_LISTEN__PORT", "eighty", "is not a TOML value"),
    ],
)
def test_the_environment_is_checked_too(variable: str, value: str, reason: str, write: Write) -> None:
    with pytest.raises(SettingsError, match=reason) as caught:
        loaded(write('node = "e"'), {variable: value})
    assert (caught.value.file, caught.value.field) == ("environment", variable)


def test_a_value_of_the_environment_of_the_wrong_type_is_refused(write: Write) -> None:
    with pytest.raises(SettingsError, match=r"listen\.port: expected int, got bool"):
        loaded(write('node = "e"'), {"TIDEGATE_LISTEN__PORT": "true"})


def test_free_tables_are_left_as_they_are(write: Write) -> None:
    assert loaded(write('node = "e"\n[properties]\n"security.protocol" = "ssl"')).properties == {"security.protocol": "ssl"}


def test_refusals_do_not_repeat_secrets(write: Write) -> None:
    text: Any = 'node = "e"\n[[keyring]]\nid = "k"\nsecret = ["hush"]'
    with pytest.raises(SettingsError) as caught:
        loaded(write(text))
    assert "hush" not in str(caught.value)
