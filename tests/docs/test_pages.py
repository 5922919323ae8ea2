"""What the documentation shows: every setting, every file, and code that runs as it stands."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from docs.make.settings_page import write_page
from mzsane.config import AnyZooConfig, validate_config

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *(REPOSITORY / "docs").glob("*.md")])


def list_blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), re.DOTALL)


def test_every_setting_is_described():
    rows = [line for line in write_page().splitlines() if line.startswith("| `")]
    assert len(rows) > 150
    silent = [row for row in rows if not row.rstrip(" |").split("| ")[-1].strip() or row.count("|") < 5]
    assert silent == []
    names = {row.split("`")[1] for row in rows}
    assert {"backbone.latent_dim", "zoos.factors.width", "sampling.bandwidth", "execution.threads"} <= names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_of_code_can_be_read(page):
    for block in list_blocks(page, "python"):
        ast.parse(block)
    for block in list_blocks(page, "yaml"):
        yaml.safe_load(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_between_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text()):
        if target == "settings.md":  # is written while the site is built
            continue
        assert (page.parent / target).exists(), target


def test_the_how_to_of_an_architecture_makes_a_zoo(tmp_path, monkeypatch):
    page = REPOSITORY / "docs" / "howto.md"
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(list_blocks(page, "python")[0])
    settings = yaml.safe_load(list_blocks(page, "yaml")[0]) | {"models": 2, "epochs": 1, "keep_epochs": 1}
    validate_config(AnyZooConfig, yaml.safe_load(list_blocks(page, "yaml")[1]), "the page")
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(settings))
    script = f"""
import sys
from pathlib import Path
sys.path[:0] = [{str(REPOSITORY)!r}, {str(tmp_path)!r}]
from mzsane.config import AnyZooConfig, load_config
from mzsane.store.artifacts import ArtifactStore
from mzsane.zoo.make import make_zoo
if __name__ == "__main__":
    zoo = make_zoo(load_config(AnyZooConfig, Path("mine.yaml")), ArtifactStore("store"))
    print(zoo.manifest.counts["models"])
"""
    (tmp_path / "script.py").write_text(script)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "MZSANE_CORES": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "2"


def test_the_notebook_runs_from_zoo_to_samples(tmp_path):
    notebook = json.loads((REPOSITORY / "docs" / "notebook.ipynb").read_text())
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in notebook["cells"])
    script = "\n".join(cells)
    assert len(script.splitlines()) > 20
    (tmp_path / "cells.py").write_text(script)
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY), "MZSANE_CORES": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "cells.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "samples" in done.stdout


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    environment = {"PATH": "/usr/bin:/bin", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "site" / "settings" / "index.html").read_text()
    assert "backbone.latent_dim" in page
    for path in (tmp_path / "site").rglob("*.html"):
        assert not re.search(r"""(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)""", path.read_text()), path
