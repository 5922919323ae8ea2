"""Complete configs as YAML files, by name: ablations here, zoos in `zoos/`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mzsane.config import AblationConfig, AnyZooConfig, load_config, validate_config
from mzsane.config.loading import apply_overrides
from mzsane.errors import ConfigError

_FOLDER = Path(__file__).parent


def list_presets(kind: str = "") -> list[str]:
    """Return the names of the shipped presets: of ablations, or of `zoos`."""
    return sorted(path.stem for path in (_FOLDER / kind).glob("*.yaml"))


def load_preset(name: str, overrides: Sequence[str] = ()) -> AblationConfig:
    """Load a shipped ablation by name, or any by the path of its YAML file, with `path.to.key=value` overrides.

    Raises:
        ConfigError: there is no such preset or file, or a setting is wrong.
    """
    return _load(AblationConfig, "", name, overrides)


def change_config(config: AblationConfig, overrides: Sequence[str]) -> AblationConfig:
    """Return an ablation with some settings changed by `path.to.key=value`.

    Raises:
        ConfigError: an override does not fit, or a setting is wrong.
    """
    data = config.model_dump(mode="json")
    apply_overrides(data, overrides)
    return validate_config(AblationConfig, data, f"{config.name} with {', '.join(overrides)}")


def load_zoo_preset(name: str, overrides: Sequence[str] = ()) -> AnyZooConfig:
    """Load a shipped zoo by name, or any by the path of its YAML file, with `path.to.key=value` overrides.

    Raises:
        ConfigError: there is no such preset or file, or a setting is wrong.
    """
    return _load(AnyZooConfig, "zoos", name, overrides)


def _load(config: Any, kind: str, name: str, overrides: Sequence[str]) -> Any:
    if name in list_presets(kind):
        return load_config(config, _FOLDER / kind / f"{name}.yaml", overrides)
    if Path(name).suffix in (".yaml", ".yml") or Path(name).is_file():
        return load_config(config, Path(name), overrides)
    raise ConfigError(f"no preset {name!r}: give the path of a YAML file or one of {', '.join(list_presets(kind))}")


DEMO = load_preset("demo")
