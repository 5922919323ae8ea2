"""Options that several commands have."""

from collections.abc import Sequence
from typing import Annotated, Any

from cyclopts import Parameter

Settings = Annotated[
    list[str],
    Parameter(
        name=("--set",),
        negative="",
        help="change one setting: path.to.key=value, as often as needed; `mzsane explain` tells what there is",
    ),
]
Processes = Annotated[int | None, Parameter(help="worker processes for populations; all cores if not given")]
_EXECUTION = "execution."


def split_execution(overrides: Sequence[str], **options: Any) -> tuple[list[str], Any]:
    """Return the overrides of the work's settings, and how it is executed, by overrides and options.

    Raises:
        ConfigError: an override of execution is wrong.
    """
    from mzsane.config import ExecutionConfig, validate_config
    from mzsane.config.loading import apply_overrides

    own = [override for override in overrides if override.startswith(_EXECUTION)]
    data = {name: value for name, value in options.items() if value is not None}
    apply_overrides(data, [override.removeprefix(_EXECUTION) for override in own])
    execution = validate_config(ExecutionConfig, data, "the command line")
    return [override for override in overrides if override not in own], execution
