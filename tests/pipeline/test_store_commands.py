"""The commands that look into a store: what is there, what it came from, how two differ, and whether it is sound."""

import re
import subprocess
import sys

import pytest

from docs.make.data_page import describe
from flows.commands.app import main
from flows.presets import load_preset
from mzsane.plan import plan_comparison_stage
from tests.pipeline.harness import MINI, REPOSITORY, clean_environment


@pytest.fixture
def run(capsys, monkeypatch, reference_run):
    """Runs `mzsane` on the store of the reference run."""
    monkeypatch.setenv("MZSANE_ROOT", reference_run.root)

    def start(*arguments):
        code = main(list(arguments))
        told = capsys.readouterr()
        return code, told.out, told.err

    return start


@pytest.fixture
def comparison(tiny, reference_run):
    return reference_run.open(plan_comparison_stage(tiny).work.ref)


def test_ls_lists_artifacts_with_name_and_time(run):
    code, out, _ = run("ls")
    assert code == 0
    kinds = {line.split("/")[0] for line in out.splitlines()[1:]}
    assert kinds == {"zoo", "tokens", "backbone", "probes", "baselines", "samples", "scores", "comparison"}
    code, out, _ = run("ls", "zoo")
    header, *rows = out.splitlines()
    assert header.split() == ["artifact", "name", "made", "(UTC)", "seconds", "MB"]
    assert {row.split()[1] for row in rows} == {"digits", "letters"}
    for row in rows:
        assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d +[0-9.]+ +[0-9.]+$", row)


def test_show_takes_what_ls_prints_and_what_tells_an_artifact_from_others(run, comparison):
    fingerprint = comparison.ref.fingerprint
    for address in (comparison.address, str(comparison.ref), f"comparison/{fingerprint[:12]}", fingerprint[:16]):
        code, out, _ = run("show", address)
        assert code == 0
        assert out.splitlines()[0] == comparison.address
        assert "report.html" in out
        assert "name: tiny" in out


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("0" * 64, ["no artifact", "begins with", "mzsane ls"]),
        ("", ["no artifact"]),
        ("zoo/", ["no artifact"]),
        ("zoos/1234", ["is no address", "backbone"]),
    ],
)
def test_what_is_not_there_is_told_in_a_line(run, address, words):
    code, _, err = run("show", address)
    assert code == 2
    (line,) = err.splitlines()
    for word in words:
        assert word in line


def test_what_several_begin_with_is_told_with_candidates(run, reference_run):
    names = [name for kind in ("zoo", "samples", "scores") for name in reference_run.files.list_names(kind)]
    starts = [name[0] for name in names]
    shared = next(start for start in starts if starts.count(start) > 1)
    code, _, err = run("show", shared)
    assert code == 2
    assert f"artifacts begin with '{shared}'" in err
    assert "give more of the name" in err


def test_lineage_goes_down_to_the_zoos(run, comparison):
    code, out, _ = run("lineage", str(comparison.ref))
    assert code == 0
    lines = out.splitlines()
    assert lines[0].startswith("comparison/")
    depths: dict[str, int] = {}
    for line in lines:  # the way by which each kind is reached first
        depths.setdefault(line.strip().split("/")[0], len(line) - len(line.lstrip()))
    assert depths["comparison"] < depths["backbone"] < depths["tokens"] < depths["zoo"]
    assert "digits" in next(line for line in lines if line.strip().startswith("zoo/"))


def test_diff_names_what_differs(run, reference_run, tiny):
    one, other = sorted(reference_run.files.list_names("zoo"))
    code, out, _ = run("diff", f"zoo/{one}", f"zoo/{other}")
    assert code == 0
    assert {line.split()[0] for line in out.splitlines()[1:]} >= {"images.source"}
    assert "learning_rate" not in out
    code, out, _ = run("diff", f"zoo/{one}", one[:20])
    assert (code, out.strip()) == (0, "they are of the same settings and inputs")
    backbone = reference_run.files.list_names("backbone").pop()
    code, _, err = run("diff", f"zoo/{one}", f"backbone/{backbone}")
    assert code == 2
    assert "two of one kind" in err


def test_compare_shows_measurements_side_by_side(run, comparison):
    code, out, _ = run("compare", str(comparison.ref), comparison.ref.fingerprint[:12])
    assert code == 0
    assert "A tiny" in out
    header = next(line for line in out.splitlines() if line.startswith("composition"))
    assert header.split()[-3:] == ["B", "-", "A"]
    samples = [line.split() for line in out.splitlines() if " samples " in line]
    assert samples
    assert all(words[-1] == "+0.0000" for words in samples)
    zoo = comparison.store.files.list_names("zoo").pop()
    code, _, err = run("compare", f"zoo/{zoo}", f"zoo/{zoo}")
    assert code == 2
    assert "is no comparison" in err


def test_the_page_of_files_and_columns_is_what_a_run_leaves(tiny, reference_run):
    def forget_hashes(text):
        return re.sub(r"-[0-9a-f]{12}", "", text)

    page = (REPOSITORY / "docs" / "data.md").read_text()
    assert forget_hashes(describe(tiny, reference_run)) == forget_hashes(page), "run docs/make/data_page.py"


def test_check_finds_a_changed_byte(make_store, tiny_zoo, capsys, monkeypatch):
    store = make_store()
    monkeypatch.setenv("MZSANE_ROOT", store.root)
    assert main(["check"]) == 0
    assert "all sound" in capsys.readouterr().out
    zoo = store.open(tiny_zoo.ref)
    path = zoo.path("index.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert main(["check", str(zoo.ref)]) == 1
    out = capsys.readouterr().out
    assert "index" in out
    assert "1 damaged" in out


def test_settings_are_explained(run):
    code, out, _ = run("explain", "backbone.latent_dim")
    assert code == 0
    assert out.startswith("backbone.latent_dim: whole number; at least 1")
    assert "default 32" in out
    assert "zoos.factors.learning_rate" in run("explain", "zoos.digits.factors")[1]
    assert "execution.threads" in run("explain", "execution")[1]
    code, _, err = run("explain", "backbone.latent_dims")
    assert code == 2
    assert "did you mean latent_dim?" in err
    assert "compositions" in run("explain")[1]


def test_presets_are_listed_and_printed(run, tmp_path):
    assert "mnist-family" in run("presets")[1]
    code, out, _ = run("presets", "show", "tiny")
    assert code == 0
    (tmp_path / "mine.yaml").write_text(out)
    assert load_preset(str(tmp_path / "mine.yaml")) == load_preset("tiny")
    code, _, err = run("presets", "show", "tinny")
    assert code == 2
    assert "did you mean tiny?" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], ["nonsense", "mzsane --help"]),
        (["ablate"], ["PRESET", "mzsane ablate --help"]),
        (["ablate", "tiny", "--sett", "x=1"], ["--sett", "mzsane ablate --help"]),
        (["zoo", "make"], ["PRESET", "mzsane zoo make --help"]),
        (["ablate", "tiny", "--set", "execution.thread=2"], ["thread", "did you mean threads?"]),
        (["ls", "zoos"], ["'zoos'", "zoo, tokens"]),
    ],
)
def test_wrong_commands_are_one_line(run, arguments, words):
    code, _, err = run(*arguments)
    assert code == 2
    (line,) = err.splitlines()
    for word in words:
        assert word in line


@pytest.mark.parametrize("arguments", [["--help"], ["presets"], ["explain", "sampling"], ["ls"]])
def test_what_needs_no_network_loads_no_torch_and_no_server(arguments, tmp_path):
    script = (
        "import sys; from flows.commands.app import main\n"
        f"code = main({arguments!r})\n"
        "heavy = {'torch', 'prefect', 'mlflow', 'sklearn', 'matplotlib'} & {n.partition('.')[0] for n in sys.modules}\n"
        "sys.exit(f'loaded {heavy}' if heavy else code)"
    )
    environment = clean_environment() | {"MZSANE_ROOT": str(tmp_path / "store")}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=REPOSITORY, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_one_arm_can_be_run(tmp_path, environment):
    import yaml

    (tmp_path / "mini.yaml").write_text(yaml.safe_dump(MINI))
    command = [sys.executable, "-m", "flows.arm", str(tmp_path / "mini.yaml"), "letters", "0", "--processes", "1"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.strip().splitlines()[-3:]
    assert [line.partition(":")[0] for line in lines] == [
        "baselines letters-s0",
        "samples letters-s0/letters",
        "scores letters-s0/letters",
    ]
