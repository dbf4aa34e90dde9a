"""Typed settings: a TOML file and the environment become one frozen struct, or are refused whole with file, field and reason.

    class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        port: int = 8443
        private_key: PrivateFile | None = None

    class EdgeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        node: str
        dev: bool = False
        listen: Listen = Listen()

    settings = load(EdgeSettings, "edge.toml")

**Environment.** `TIDEGATE_LISTEN__PORT=9443` replaces `listen.port`: the prefix, then the field in capitals, tables joined by two
underscores. Text fields take the value as it is; all others take it as TOML (`true`, `5.0`, `["a:1", "b:1"]`). The environment reaches
tables, not single entries of arrays of tables. A name with two underscores that leads to no field is refused; other names that begin
with the prefix are left to whoever reads them.

**Secrets.** A field `x` of type `Secret` is given as exactly one of `x`, `x_file` (a path, relative to the settings file) and `x_env` (the
name of an environment variable), at any depth, in arrays of tables too. Surrounding white space of a file's content is dropped.

**Files.** `File` and `PrivateFile` are paths relative to the settings file, which must exist. A secret's file and a `PrivateFile` that the
group or the world may read are refused, unless the settings say `dev = true` at the top.
"""

from __future__ import annotations

import os
import re
import stat
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path, PosixPath
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

MAX_SECRET_BYTES = 65_536
"""Largest secret file. Above it: refused at start; it is hardly a secret."""


class SettingsError(Exception):
    """A setting that cannot be used. One line: where it stands, which field, why. Values of secrets are never part of it."""

    def __init__(self, file: str, field: str, reason: str) -> None:
        self.file, self.field, self.reason = file, field, reason
        super().__init__(f"{file}: {field}: {reason}" if field else f"{file}: {reason}")


class Secret:
    """A text that does not show itself: not in logs, tracebacks, `repr` or comparisons by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __repr__(self) -> str:
        return "Secret(hidden)"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> str | tuple[Any, ...]:
        raise TypeError("a Secret is not pickled or copied into other places")


class File(PosixPath):
    """A file that must exist and be readable, named relative to the settings file."""


class PrivateFile(File):
    """The same, and only its owner may read it (outside `dev`)."""


def load(
    cls: type[T],
    path: str | os.PathLike[str],
    *,
    env_prefix: str = "TIDEGATE_",
    environ: Mapping[str, str] = os.environ,
    partial: bool = False,
) -> T:
    """Settings of type `cls` (a msgspec struct) from the TOML file at `path`, with the environment laid over it. `partial`: `cls` has only
    some of the settings that are meant, and variables that name others are left alone.

    Raises: SettingsError, and nothing else.
    """
    file = Path(path)
    try:
        data = tomllib.loads(file.read_bytes().decode())
    except OSError as error:
        raise SettingsError(str(path), "", f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SettingsError(str(path), "", "is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(str(path), "", f"is not TOML: {error}") from None
    return build(cls, data, file=file, env_prefix=env_prefix, environ=environ, partial=partial)


def build(
    cls: type[T],
    data: dict[str, Any],
    *,
    file: Path,
    env_prefix: str = "TIDEGATE_",
    environ: Mapping[str, str] = os.environ,
    partial: bool = False,
) -> T:
    """The same from tables already in memory; `file` names them in errors, and paths are relative to it. `data` is changed."""
    _overlay_environment(cls, data, env_prefix, environ, partial=partial)
    reader = _Reader(str(file), file.parent, dev=data.get("dev") is True, environ=environ)
    reader.resolve_secrets(cls, data, "")
    try:
        return msgspec.convert(data, cls, strict=True, dec_hook=reader.custom)
    except msgspec.ValidationError as error:
        field, reason = _explain(str(error))
        raise SettingsError(str(file), field, reason) from None


def _explain(text: str) -> tuple[str, str]:
    """msgspec's message, "Expected `int`, got `str` - at `$.listen.port`", as dotted field and reason."""
    found = re.fullmatch(r"(?s)(.*?)(?: - at `\$(.*)`)?", text)
    assert found is not None
    reason, at = found.group(1), (found.group(2) or "").lstrip(".")
    if named := re.fullmatch(r"Object (?:contains unknown|missing required) field `(.*)`", reason):
        at = f"{at}.{named.group(1)}".lstrip(".")
        reason = "there is no such setting" if "unknown" in reason else "must be set"
    return at, reason[:1].lower() + reason[1:].replace("`", "")


class _Reader:
    """What turning one file into settings needs to know."""

    def __init__(self, file: str, directory: Path, *, dev: bool, environ: Mapping[str, str]) -> None:
        self.file, self.directory, self.dev, self.environ = file, directory, dev, environ

    def custom(self, kind: type, value: object) -> object:
        """msgspec's hook for types that it does not know. Raises: ValueError, which msgspec completes with the field."""
        if not isinstance(value, str):
            raise ValueError(f"expected text, got {type(value).__name__}")  # noqa: TRY004 - msgspec wants it so
        if kind is Secret:
            return Secret(value)
        if issubclass(kind, File):
            path = kind(self.directory / value)
            self.check(path, private=issubclass(kind, PrivateFile))
            return path
        raise NotImplementedError(kind)

    def check(self, path: Path, *, private: bool, max_bytes: int | None = None) -> None:
        """Raises: ValueError if `path` is no readable file, or others than its owner may read it although it is private."""
        try:
            status = path.stat()
        except OSError as error:
            raise ValueError(f"{path} cannot be read: {error.strerror}") from None
        if not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):
            raise ValueError(f"{path} is not a readable file")
        if max_bytes is not None and status.st_size > max_bytes:
            raise ValueError(f"{path} is larger than {max_bytes} bytes")
        if private and not self.dev and status.st_mode & (stat.S_IRGRP | stat.S_IROTH):
            raise ValueError(f"{path} may be read by others (mode {stat.S_IMODE(status.st_mode):04o}): chmod 600 {path}")

    def resolve_secrets(self, kind: object, data: object, at: str) -> None:
        """Replace `x_file` and `x_env` by `x` wherever `kind` declares a Secret `x`. Shapes that do not fit are left to msgspec."""
        struct = _struct_in(kind)
        if struct is None:
            inner = _inner_of(kind)
            items: Iterator[tuple[object, object]] = iter(())
            if isinstance(data, list):
                items = iter(enumerate(data))
            elif isinstance(data, dict):
                items = iter(data.items())
            if inner is not None:
                for index, item in items:
                    self.resolve_secrets(inner, item, f"{at}[{index}]" if isinstance(index, int) else f"{at}.{index}")
            return
        if not isinstance(data, dict):
            return
        for field in msgspec.structs.fields(struct):
            name = field.encode_name
            if Secret in _choices(field.type):
                self._resolve_secret(data, name, f"{at}.{name}".lstrip("."))
            elif name in data:
                self.resolve_secrets(field.type, data[name], f"{at}.{name}".lstrip("."))

    def _resolve_secret(self, data: dict[str, Any], name: str, at: str) -> None:
        given = [spelling for spelling in (name, f"{name}_file", f"{name}_env") if spelling in data]
        if len(given) > 1:
            raise SettingsError(self.file, at, f"give one of {', '.join(given)}, not {len(given)} of them")
        if not given or given[0] == name:
            return
        source = data.pop(given[0])
        at = at.removesuffix(name) + given[0]
        if not isinstance(source, str):
            raise SettingsError(self.file, at, f"expected str, got {type(source).__name__}")
        data[name] = self._from_file(source, at) if given[0] == f"{name}_file" else self._from_environment(source, at)

    def _from_file(self, source: str, at: str) -> str:
        path = self.directory / source
        try:
            self.check(path, private=True, max_bytes=MAX_SECRET_BYTES)
            return path.read_bytes().decode().strip()
        except UnicodeDecodeError:
            raise SettingsError(self.file, at, f"{path} is not UTF-8") from None
        except (ValueError, OSError) as error:
            raise SettingsError(self.file, at, str(error)) from None

    def _from_environment(self, source: str, at: str) -> str:
        value = self.environ.get(source, "").strip()
        if not value:
            raise SettingsError(self.file, at, f"the environment variable {source} is not set")
        return value


def _overlay_environment(cls: type, data: dict[str, Any], prefix: str, environ: Mapping[str, str], *, partial: bool) -> None:
    for variable in sorted(environ):
        if not variable.startswith(prefix) or variable == prefix:
            continue
        steps = variable.removeprefix(prefix).lower().split("__")
        kind = _type_at(cls, steps)
        if kind is None:
            if len(steps) > 1 and not partial:
                raise SettingsError("environment", variable, f"there is no such setting as {'.'.join(steps)}")
            continue
        table = data
        for step in steps[:-1]:
            table = table.setdefault(step, {})
            if not isinstance(table, dict):
                raise SettingsError("environment", variable, f"{step} is not a table")
        table[steps[-1]] = _value_of(variable, environ[variable], kind)


def _value_of(variable: str, text: str, kind: object) -> object:
    if any(choice is str or choice is Secret or (isinstance(choice, type) and issubclass(choice, File)) for choice in _choices(kind)):
        return text
    if typing.get_origin(kind) is typing.Literal:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise SettingsError("environment", variable, "is not a TOML value (text in lists needs quotes)") from None


def _type_at(cls: type, steps: list[str]) -> Any:
    """The declared type of the field that `steps` lead to; None if they lead nowhere. `x_file` and `x_env` of a secret are text."""
    kind: Any = cls
    for position, step in enumerate(steps):
        struct = _struct_in(kind)
        if struct is None:
            return None
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
        if step not in fields:
            secret = fields.get(step.removesuffix("_file").removesuffix("_env"))
            return str if position == len(steps) - 1 and secret is not None and Secret in _choices(secret) else None
        kind = fields[step]
    return kind


def _choices(kind: object) -> tuple[object, ...]:
    """The members of a union, or the type itself; `Annotated` is seen through."""
    if typing.get_origin(kind) is typing.Annotated:
        return _choices(typing.get_args(kind)[0])
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        return tuple(choice for member in typing.get_args(kind) for choice in _choices(member))
    return (kind,)


def _struct_in(kind: object) -> type[msgspec.Struct] | None:
    for choice in _choices(kind):
        if isinstance(choice, type) and issubclass(choice, msgspec.Struct):
            return choice
    return None


def _inner_of(kind: object) -> Any:
    """What a list, a tuple or a mapping holds."""
    for choice in _choices(kind):
        arguments = [argument for argument in typing.get_args(choice) if argument is not Ellipsis]
        if arguments and typing.get_origin(choice) is not typing.Literal:
            return arguments[-1]
    return None
