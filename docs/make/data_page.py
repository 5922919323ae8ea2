"""Write docs/data.md: every artifact's files and columns, as a real run of the preset `tiny` leaves them.

`python docs/make/data_page.py`, from the repository root. A test compares the page with another run.
"""

import json
import sys
import tempfile
from pathlib import Path

import polars as pl
from safetensors import safe_open

FOLDER = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(FOLDER.parent))

from flows.presets import load_preset  # noqa: E402
from mzsane.config import AblationConfig, ExecutionConfig  # noqa: E402
from mzsane.metrics import NO_SINK  # noqa: E402
from mzsane.plan import plan_ablation  # noqa: E402
from mzsane.store.artifacts import Artifact, ArtifactStore  # noqa: E402

_HEAD = """# Data format

An artifact is a folder `<root>/<kind>/<fingerprint>/`. Its `manifest.json` is written last, names every file with its
size and sha256, and says what the work was: version, settings, inputs, seed; how it was made: name, time, seconds,
threads, commit, host; and counts. Files are stored with the begin of their hash in their names; the names below are
those of the manifest. All can be read with polars, pyarrow and safetensors alone.

What columns mean is told where their numbers are: [zoos](zoos.md), [tokens](tokens.md), [samples](samples.md),
[scores](scores.md), [probes](probes.md).
"""


def describe(config: AblationConfig, store: ArtifactStore) -> str:
    """Return the page for the artifacts of a finished ablation, one of each kind."""
    lines = [_HEAD]
    seen: set[str] = set()
    for stage in plan_ablation(config):
        if stage.work.kind in seen:
            continue
        seen.add(stage.work.kind)
        artifact = store.open(stage.work.ref)
        lines += [f"## {stage.work.kind}", ""]
        for name in sorted(artifact.manifest.files):
            lines += _describe_file(artifact, name)
    return "\n".join(lines).rstrip() + "\n"


def _describe_file(artifact: Artifact, name: str) -> list[str]:
    path = artifact.path(name)
    if name.endswith(".parquet"):
        schema = pl.read_parquet_schema(path)
        columns = [f"`{column}` {str(kind).lower()}" for column, kind in schema.items()]
        return [f"**`{name}`**: {', '.join(columns)}", ""]
    if name.endswith(".safetensors"):
        with safe_open(path, framework="numpy") as file:
            tensors = sorted(file.keys())
        shown = ", ".join(f"`{tensor}`" for tensor in tensors[:8]) + (", ..." if len(tensors) > 8 else "")
        return [f"**`{name}`**: tensors {shown}", ""]
    if name.endswith(".json"):
        content = json.loads(path.read_bytes())
        keys = ", ".join(f"`{key}`" for key in sorted(content)) if isinstance(content, dict) else "a list"
        return [f"**`{name}`**: {keys}", ""]
    return [f"**`{name}`**", ""]


def main() -> None:
    """Run `tiny`, and write the page."""
    config = load_preset("tiny")
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(folder)
        for stage in plan_ablation(config):
            stage.make(store, ExecutionConfig(processes=1), NO_SINK)
        (FOLDER / "data.md").write_text(describe(config, store))


if __name__ == "__main__":
    main()
