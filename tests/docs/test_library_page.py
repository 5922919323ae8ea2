"""What the page of the library shows can be run as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


def read_snippet() -> str:
    text = (REPOSITORY / "docs" / "library.md").read_text()
    found = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found.group(1)


def run_script(code, folder, environment):
    script = folder / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def make_environment():
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), "MZSANE_CORES": "2", "OMP_NUM_THREADS": "1"}


def shrink(code: str) -> str:
    """Make less of it; the way is the same."""
    small = code.replace("models=16, epochs=5", "models=8, epochs=2").replace("models=8)", "models=4)")
    small = small.replace('"steps": 100', '"steps": 3')
    assert small != code
    return small


def test_the_library_snippet_runs_as_a_script(tmp_path):
    done = run_script(shrink(read_snippet()), tmp_path, make_environment())
    assert done.returncode == 0, done.stderr
    assert "tokens;" in done.stdout
    assert "/backbone/" in done.stdout.splitlines()[-1]


def test_a_script_without_a_guard_is_told_so_in_a_line(tmp_path):
    code = shrink(read_snippet()).replace('if __name__ == "__main__":', "if True:")
    done = run_script(code, tmp_path, make_environment())
    assert done.returncode != 0
    assert done.stderr.count("Traceback") <= 1  # the script's own
    last = done.stderr.strip().splitlines()[-1]
    assert "ConfigError" in last
    assert '__name__ == "__main__"' in last
    assert "memory" not in last
