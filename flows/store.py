"""Command `store`: look after the artifact store."""

import argparse
import sys

from mzsane.store.artifacts import ArtifactStore
from mzsane.store.garbage import AGE_HOURS, collect_garbage
from tasks.terminal import report_errors


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m flows.store", description="The artifact store at MZSANE_ROOT.")
    commands = parser.add_subparsers(dest="command", required=True)
    collect = commands.add_parser("gc", help="list what killed runs have left, here and in the store, or remove it")
    collect.add_argument("--delete", action="store_true", help="remove it; without, nothing is touched")
    collect.add_argument(
        "--age",
        type=float,
        default=AGE_HOURS,
        metavar="HOURS",
        help=f"leave work alone in which something was written since ({AGE_HOURS:g} if not given)",
    )
    options = parser.parse_args(arguments)
    return report_errors(lambda: _collect(options.delete, options.age))


def _collect(delete: bool, age_hours: float) -> int:
    store = ArtifactStore.from_environment()
    garbage = collect_garbage(store, delete, age_hours)
    for each in garbage:
        print(f"{each.bytes:>15,}  {each.name}  ({each.reason})")
    total = sum(each.bytes for each in garbage)
    if not garbage:
        print(f"nothing to remove in {store.root}")
    elif delete:
        print(f"{len(garbage)} files, {total:,} bytes removed")
    else:
        print(f"{len(garbage)} files, {total:,} bytes would go: add --delete to remove them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
