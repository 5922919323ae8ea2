"""Commands that tell what can be set."""

import textwrap
from pathlib import Path

from cyclopts import App

presets = App(name="presets", help="The shipped configs: list them, or print one.", result_action="return_value")
_WIDTH = 100
_FOLDER = Path(__file__).parents[1] / "presets"


@presets.default
def list_presets() -> int:
    """List the shipped ablations and zoos."""
    for title, folder in (("ablations", _FOLDER), ("zoos", _FOLDER / "zoos")):
        print(f"{title}:")
        for path in sorted(folder.glob("*.yaml")):
            print(f"  {path.stem:<18} {_read_summary(path)}".rstrip())
    return 0


@presets.command
def show(name: str, /) -> int:
    """Print a preset, to be changed and given as a file.

    Parameters
    ----------
    name
        of an ablation or a zoo
    """
    from mzsane.config.loading import suggest
    from mzsane.errors import ConfigError

    paths = {path.stem: path for folder in (_FOLDER / "zoos", _FOLDER) for path in folder.glob("*.yaml")}
    if name not in paths:
        raise ConfigError(f"no preset {name!r}{suggest(name, paths)}: there are {', '.join(sorted(paths))}")
    print(paths[name].read_text().rstrip())
    return 0


def explain(setting: str = "", /) -> int:
    """Explain a setting: what it does, its type, limits and default; of a section all of its settings.

    Parameters
    ----------
    setting
        its dotted name, such as backbone.latent_dim; the sections of an ablation if not given
    """
    from mzsane.config.explain import find_settings

    for each in find_settings(setting):
        facts = [each.kind, each.limits, "must be given" if each.default is None else f"default {each.default}"]
        print(f"{each.name}: {'; '.join(filter(None, facts))}")
        if each.description:
            print(textwrap.fill(each.description, _WIDTH, initial_indent="    ", subsequent_indent="    "))
    return 0


def _read_summary(path: Path) -> str:
    """Return the first sentence of the comment at a preset's top."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("# "))
    sentence, mark, _ = " ".join(lines).partition(". ")
    return textwrap.shorten(sentence.rstrip(".") + (mark.strip() and "."), _WIDTH - 22, placeholder=" ...")
