"""Complete ablation configs as YAML files, by name."""

from collections.abc import Sequence
from pathlib import Path

from mzsane.config import AblationConfig, load_config
from mzsane.errors import ConfigError

_FOLDER = Path(__file__).parent


def list_presets() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_preset(name: str, overrides: Sequence[str] = ()) -> AblationConfig:
    """Load a shipped preset by name, or any config by the path of its YAML file, with `path.to.key=value` overrides.

    Raises:
        ConfigError: there is no such preset or file, or a setting is wrong.
    """
    if name in list_presets():
        return load_config(AblationConfig, _FOLDER / f"{name}.yaml", overrides)
    if Path(name).suffix in (".yaml", ".yml"):
        return load_config(AblationConfig, Path(name), overrides)
    raise ConfigError(f"no preset {name!r}: give the path of a YAML file or one of {', '.join(list_presets())}")


DEMO = load_preset("demo")
