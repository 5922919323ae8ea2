"""Commands that make zoos, and bring them in and out."""

from typing import Annotated

from cyclopts import App, Parameter

from flows.commands.options import Processes, Settings, split_execution

app = App(name="zoo", help="Zoos of trained networks.", result_action="return_value")


@app.command(alias="read")
def make(preset: str, /, *, settings: Settings = [], processes: Processes = None) -> int:  # noqa: B006
    """Train or read a zoo, or make one sparse, and print its card.

    Parameters
    ----------
    preset
        a preset (`mzsane presets` lists them) or the path of a YAML file
    """
    from flows.presets import load_zoo_preset

    own, execution = split_execution(settings, processes=processes)
    config = load_zoo_preset(preset, own)
    from flows.zoo import make_command

    return make_command(config, execution)


@app.command(name="list")
def list_() -> int:
    """List the published zoos that can be downloaded."""
    from mzsane.fetch.catalog import catalog_table

    print(catalog_table())
    return 0


@app.command
def download(
    source: str,
    /,
    *,
    epochs: Annotated[list[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    members: Annotated[list[str], Parameter(consume_multiple=True, negative="")] = [],  # noqa: B006
) -> int:
    """Fetch a published zoo, or some epochs of it, into the store.

    Parameters
    ----------
    source
        name in the list, or the address of a file
    epochs
        only these epochs; all if not given
    members
        only members that fit a pattern
    """
    from flows.zoo import download_command

    return download_command(source, epochs, members)


@app.command
def export(preset: str, target: str, /, *, settings: Settings = []) -> int:  # noqa: B006
    """Write a zoo in the layout of the published zoos.

    Parameters
    ----------
    preset
        a preset or the path of a YAML file, whose zoo is in the store
    target
        folder or URL to write to
    """
    from flows.presets import load_zoo_preset
    from flows.zoo import export_command

    return export_command(load_zoo_preset(preset, settings), target)
