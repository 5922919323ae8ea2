"""Configs from YAML files, overrides and forms, with one error text for all."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mzsane.config.base import Config
from mzsane.config.yaml_text import DEEPEST, YamlTextError, read_yaml
from mzsane.errors import ConfigError

T = TypeVar("T")
_SHOWN = 100  # characters of a wrong value


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
            message = "unknown key" + suggest(str(item["loc"][-1]), list_settings())
        elif item["type"] == "string_type" and isinstance(item["input"], int | float):
            message = f"text is needed, and {_show(item['input'])} is none: put it in quotes"
        elif item["type"] not in ("value_error", "missing"):
            message += f", not {_show(item['input'])}"
        reasons.append(f"{key}: {message}" if key else message)
    return "; ".join(reasons)


def list_settings() -> set[str]:
    """Return the names of all settings of all configs."""
    kinds, names = [Config], set[str]()
    while kinds:
        kind = kinds.pop()
        names |= set(kind.model_fields)
        kinds += kind.__subclasses__()
    return names


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` if a name is nearly one that is known, else nothing."""
    near = get_close_matches(name, sorted(known), n=1, cutoff=0.7)
    return f"; did you mean {near[0]}?" if near else ""


def _show(value: Any) -> str:
    if isinstance(value, dict):
        return "settings" if value else "no settings"
    if isinstance(value, list | tuple) and any(isinstance(item, dict | list | tuple) for item in value):
        return f"a list of {len(value)}"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "a number of more than 40 digits"
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


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

    Values are YAML; an item of a list is named by its index or its `name`. A later override may set a part of what an
    earlier one has set; one that would undo an earlier one is refused, as a key that comes twice in the file is.

    Raises:
        ConfigError: the file is missing or not YAML, a key or override comes twice, an override does not fit, or a
            setting is wrong.
    """
    data = _read_settings(path)
    apply_overrides(data, overrides)
    shown = ", ".join(map(_cut, overrides))
    return validate_config(kind, data, where=str(path) + (f" with {shown}" if overrides else ""))


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    """Set values in plain data, in place, by `path.to.key=value` (see `load_config`).

    Raises:
        ConfigError: an override does not fit, or undoes an earlier one.
    """
    done: dict[tuple[str | int, ...], str] = {}
    for override in overrides:
        place = _apply_override(data, override)
        for earlier, text in done.items():
            if earlier[: len(place)] == place:
                raise ConfigError(f"override {_cut(override)!r} undoes {_cut(text)!r}: give one of them")
        done[place] = override


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # a pipe or device may never end
            if path.is_dir():
                raise ConfigError(f"{path} cannot be read as YAML: it is a folder")
            raise ConfigError(f"no such config file: {path}" if not path.exists() else f"{path} is no regular file")
        data = read_yaml(path.read_bytes())
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{_cut(str(path))} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if data is None:
        raise ConfigError(f"{path} is empty: there are no settings in it")
    if not isinstance(data, dict):
        raise ConfigError(f"{path} holds {_show(data)} where settings (key: value) are needed")
    return data


def _apply_override(data: Any, override: str) -> tuple[str | int, ...]:
    """Set one value; return its place, with items of lists by their index."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"override {_cut(override)!r} is not of the form path.to.key=value")
    *parents, last = key.split(".")
    if len(parents) > DEEPEST:
        raise ConfigError(f"override {_cut(override)!r} is nested deeper than {DEEPEST} levels")
    node, place = data, list[str | int]()
    for part in parents:
        if isinstance(node, dict) and part not in node:
            node[part] = {}
        place.append(_find_step(node, part, override))
        node = node[place[-1]]
    try:
        value = read_yaml(text)
    except YamlTextError as error:
        raise ConfigError(f"override {_cut(override)!r}: the value is not YAML: {error}") from None
    if not isinstance(node, dict):
        place.append(_find_step(node, last, override))
    else:
        place.append(last)
    node[place[-1]] = value
    return tuple(place)


def _find_step(node: Any, part: str, override: str) -> str | int:
    """Return the key or index that a part of an override's path means."""
    if isinstance(node, dict):
        return part
    if isinstance(node, list):
        if part.isdecimal() and len(part) < 10 and int(part) < len(node):
            return int(part)
        for number, item in enumerate(node):
            if isinstance(item, dict) and item.get("name") == part:
                return number
    raise ConfigError(f"override {_cut(override)!r}: there is no {part[:_SHOWN]!r} to set")


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
