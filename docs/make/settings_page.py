"""The page of every setting, written from the configs while the site is built."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mzsane.config.ablation import AblationConfig
from mzsane.config.base import Config
from mzsane.config.execution import ExecutionConfig
from mzsane.config.explain import list_sections
from mzsane.config.reading import DownloadConfig

_TOP: tuple[tuple[str, type[Config]], ...] = (
    ("an ablation", AblationConfig),
    ("download", DownloadConfig),
    ("execution", ExecutionConfig),
)


def write_page() -> str:
    """Return the page as markdown: a table a section."""
    lines = [
        "# Every setting",
        "",
        "`mzsane explain NAME` tells the same. A dotted name can be set with `--set NAME=VALUE`.",
        "",
    ]
    for top, config in _TOP:
        for name, about, settings in list_sections(config, "" if config is AblationConfig else top):
            title = f"`{name}`" if name else top.capitalize()
            lines += [f"## {title}", "", about, "", "| setting | value | default | what it does |", "|---|---|---|---|"]
            for each in settings:
                value = "; ".join(filter(None, (each.kind, each.limits)))
                default = "must be given" if each.default is None else f"`{each.default}`"
                cells = (f"`{each.name}`", value, default, each.description)
                lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
            lines.append("")
    return "\n".join(lines)


def on_files(files: Any, config: Any) -> Any:
    """Add the page to the site (a hook of mkdocs)."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "settings.md", content=write_page()))
    return files
