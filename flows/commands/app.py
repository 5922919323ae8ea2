"""The command `mzsane`: its sub-commands, how it fails, and completion for the shell."""

import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError

from flows.commands import ablation, settings, stack, store, zoo
from tasks.command import report_errors

app = App(
    name="mzsane",
    help="What should a model zoo be made of? Zoos of trained networks, backbones on their weights, samples, scores.",
    version=lambda: _read_version(),
    result_action="return_value",
    exit_on_error=False,
    print_error=False,
)
for command in (ablation.ablate, ablation.arm, ablation.samples):
    app.command(command)
app.command(zoo.app)
for command in (settings.presets, settings.explain):
    app.command(command)
for command in (store.ls, store.show, store.diff, store.lineage, store.compare, store.gc, store.check):
    app.command(command)
app.command(stack.app)
app.register_install_completion_command()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    tokens = list(sys.argv[1:] if arguments is None else arguments)
    return report_errors(lambda: _run(tokens))


def _run(tokens: list[str]) -> int:
    try:
        code = app(tokens)
    except CycloptsError as error:
        text = " ".join(str(error).split())
        print(f"error: {text} (`mzsane {' '.join([*_name_command(tokens), '--help'])}` tells more)", file=sys.stderr)
        return 2
    return code if isinstance(code, int) else 0


def _name_command(tokens: Sequence[str]) -> list[str]:
    """Return the words of a command line that name the command."""
    words, level = [], app
    for token in tokens:
        if token not in level:
            break
        words.append(token)
        level = level[token]
    return words


def _read_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("mzsane")
    except PackageNotFoundError:
        return "not installed"
