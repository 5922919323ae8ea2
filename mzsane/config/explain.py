"""What a setting means: its description, type, limits and default, found by its dotted name."""

from dataclasses import dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic.fields import FieldInfo

from mzsane.config.ablation import AblationConfig
from mzsane.config.base import Config
from mzsane.config.execution import ExecutionConfig
from mzsane.config.loading import suggest
from mzsane.config.reading import DownloadConfig, ReadConfig
from mzsane.config.zoo import ZooConfig
from mzsane.config.zoos import SparseConfig
from mzsane.errors import ConfigError

# Where dotted names begin: an ablation's sections, else the settings of a zoo, of a download, of execution.
_ROOTS: tuple[type[Config], ...] = (AblationConfig, ZooConfig, ReadConfig, SparseConfig, DownloadConfig)
_LIMITS = {Ge: ("at least", "ge"), Gt: ("above", "gt"), Le: ("at most", "le"), Lt: ("below", "lt")}
_LENGTHS = {MinLen: ("at least", "min_length"), MaxLen: ("at most", "max_length")}


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        name: dotted.
        kind: of value, in words.
        default: as YAML would have it; None if it must be given.
        limits: of the value, in words.
        description: what it does.
    """

    name: str
    kind: str
    default: str | None
    limits: str
    description: str


def find_settings(name: str) -> list[Setting]:
    """Return the settings that a dotted name means, or, where it names a section, those in it.

    The number or name of an item in a list may stand in a name, and may be left out.

    Raises:
        ConfigError: there is none of that name.
    """
    parts = [part for part in name.split(".") if part]
    if not parts:
        return list_settings_of(AblationConfig, "")
    if parts[0] == "execution":
        roots: tuple[type[Config], ...] = (ExecutionConfig,)
        parts = parts[1:]
    else:
        roots = _ROOTS
    known: set[str] = set()
    found: dict[tuple[str, str], Setting] = {}
    for root in roots:
        for setting in _walk(root, parts, "execution" if root is ExecutionConfig else "", known):
            found.setdefault((setting.name, setting.description), setting)
    if not found:
        raise ConfigError(f"no setting is called {name}{suggest(parts[-1] if parts else name, known)}")
    return list(found.values())


def list_sections(config: type[Config], prefix: str = "") -> list[tuple[str, str, list[Setting]]]:
    """Return a config's settings and those of all sections below it: dotted name, what it is, settings, each once."""
    sections: list[tuple[str, str, list[Setting]]] = []
    waiting, seen = [(prefix, config)], set[type[Config]]()
    while waiting:
        name, kind = waiting.pop(0)
        if kind in seen:
            continue
        seen.add(kind)
        dot = f"{name}." if name else ""
        about = " ".join((kind.__doc__ or "").split("\n\n")[0].split())
        sections.append((name, about, list_settings_of(kind, dot)))
        for key, field in kind.model_fields.items():
            waiting += [(f"{dot}{key}", inner) for inner in _list_configs(field.annotation, *field.metadata)]
    return sections


def list_settings_of(config: type[Config], prefix: str) -> list[Setting]:
    """Return the settings of a config, those of its sections not among them."""
    return [_describe(f"{prefix}{name}", field) for name, field in config.model_fields.items()]


def _walk(config: type[Config], parts: list[str], path: str, known: set[str]) -> list[Setting]:
    """Return what the rest of a name means in a config."""
    prefix = f"{path}." if path else ""
    if not parts:
        return list_settings_of(config, prefix)
    known |= set(config.model_fields)
    head, rest = parts[0], parts[1:]
    if head not in config.model_fields:
        return []
    field = config.model_fields[head]
    inner = _list_configs(field.annotation, *field.metadata)
    if not rest:
        sections = [setting for each in inner for setting in list_settings_of(each, f"{prefix}{head}.")]
        return [_describe(f"{prefix}{head}", field), *sections]
    found = [setting for each in inner for setting in _walk(each, rest, f"{prefix}{head}", known)]
    if not found and len(rest) > 1:  # the number or name of an item
        found = [setting for each in inner for setting in _walk(each, rest[1:], f"{prefix}{head}", known)]
    return found


def _list_configs(*annotations: Any) -> list[type[Config]]:
    """Return the configs that occur in a type."""
    found: list[type[Config]] = []
    for annotation in annotations:
        if isinstance(annotation, type) and issubclass(annotation, Config):
            found.append(annotation)
        else:
            found += _list_configs(*get_args(annotation))
    return list(dict.fromkeys(found))


def _describe(name: str, field: FieldInfo) -> Setting:
    if field.is_required():
        default = None
    else:
        value = field.get_default(call_default_factory=True)
        default = "the section's own" if isinstance(value, Config) else _show(value)
    return Setting(
        name,
        _name_type(field.annotation),
        default,
        _name_limits(field.metadata, field.annotation),
        field.description or "",
    )


def _show(value: object) -> str:
    """Return a value as YAML would have it."""
    if isinstance(value, tuple):
        return f"[{', '.join(map(_show, value))}]"
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _name_type(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, UnionType):
        named = [_name_type(each) for each in arguments if each is not type(None)]
        return " or ".join(dict.fromkeys(named)) + (" or none" if type(None) in arguments else "")
    if hasattr(annotation, "__metadata__"):
        return _name_type(arguments[0])
    if origin is tuple:
        return f"list of {_name_type(arguments[0])}"
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return "settings"
    return {int: "whole number", float: "number", str: "text", bool: "true | false"}.get(annotation, str(annotation))


def _name_limits(metadata: list[Any], annotation: Any) -> str:
    words = []
    for each in [*metadata, *getattr(annotation, "__metadata__", ())]:
        for table, unit in ((_LIMITS, ""), (_LENGTHS, " items")):
            if type(each) in table:
                word, attribute = table[type(each)]
                words.append(f"{word} {getattr(each, attribute):,}{unit}")
    return ", ".join(words)
