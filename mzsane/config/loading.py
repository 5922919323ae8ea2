"""Configs from YAML files, overrides and forms, with one error text for all."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from mzsane.errors import ConfigError

T = TypeVar("T")


def validate_config(kind: type[T], data: Any, where: str) -> T:
    """Build a config from plain data.

    Args:
        kind: the config class, or a union of them.
        data: nested dicts and lists, as read from YAML.
        where: what the data is, for the error text: a file, a form.

    Raises:
        ConfigError: one line that names each wrong key, its value, and what is allowed.
    """
    try:
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain_validation(error, data)}") from None


def explain_validation(error: ValidationError, data: Any) -> str:
    """Put a pydantic error in one line: each wrong key with its value and the reason.

    Args:
        error: what pydantic says.
        data: what was validated.
    """
    reasons = []
    for item in error.errors():
        key = ".".join(_drop_tags(item["loc"], data))
        message = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            message = "unknown key"
        elif item["type"] not in ("value_error", "missing"):
            message += f", not {item['input']!r}"
        reasons.append(f"{key}: {message}" if key else message)
    return "; ".join(reasons)


def _drop_tags(place: tuple[int | str, ...], data: Any) -> list[str]:
    """Return a key's path without what pydantic puts in it for the alternatives of a union."""
    path: list[str] = []
    for number, part in enumerate(place):
        if isinstance(data, list | tuple):
            data = dict(enumerate(data))
        if isinstance(data, dict) and part in data:
            data = data[part]
        elif number < len(place) - 1:
            continue
        path.append(str(part))
    return path


def load_config(kind: type[T], path: Path, overrides: Sequence[str] = ()) -> T:
    """Read a config from a YAML file and apply `path.to.key=value` overrides.

    Values are YAML; an item of a list is named by its index or its `name`.

    Raises:
        ConfigError: the file is missing or not YAML, an override does not fit, or a setting is wrong.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no such config file: {path}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    for override in overrides:
        _apply_override(data, override)
    return validate_config(kind, data, where=str(path) + (f" with {', '.join(overrides)}" if overrides else ""))


def _apply_override(data: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {override!r} is not of the form path.to.key=value")
    *parents, last = key.split(".")
    node = data
    for part in parents:
        if isinstance(node, dict) and part not in node:
            node[part] = {}
        node = _step_into(node, part, override)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: the value is not YAML") from None
    if isinstance(node, dict):
        node[last] = value
    elif isinstance(node, list) and last.isdecimal() and int(last) < len(node):
        node[int(last)] = value
    else:
        raise ConfigError(f"override {override!r}: there is no {last!r} to set")


def _step_into(node: Any, part: str, override: str) -> Any:
    if isinstance(node, dict):
        return node[part]
    if isinstance(node, list):
        if part.isdecimal() and int(part) < len(node):
            return node[int(part)]
        named = [item for item in node if isinstance(item, dict) and item.get("name") == part]
        if named:
            return named[0]
    raise ConfigError(f"override {override!r}: there is no {part!r}")
