"""The pages that people look at: a real stack, and an ablation started from Prefect's form in headless Chromium."""

import base64
import json
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import polars as pl
import pytest

from flows.presets import DEMO, load_preset
from infra import stack
from infra.settings import StackSettings
from mzsane.config import (
    AblationConfig,
    BackboneConfig,
    CompositionConfig,
    DigitsConfig,
    DownloadConfig,
    EvaluationConfig,
    ExecutionConfig,
    FactorsConfig,
    NetworkConfig,
    ReadConfig,
    SamplingConfig,
    SliceConfig,
    TokensConfig,
    ZooConfig,
)
from mzsane.plan import list_arms, plan_comparison_stage
from mzsane.report.compare import read_answers
from mzsane.store.artifacts import Artifact, ArtifactStore

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
PATIENCE = 120_000  # milliseconds that one condition on a page may take, on a machine with other work

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH"),
]

REPOSITORY = Path(__file__).resolve().parents[2]
TINY = load_preset("tiny")
ARMS = [arm.name for arm in list_arms(TINY)]
ENDED = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

# Reads one column block of MLflow's table, of which only the rows in sight exist: {distance from the top: texts}.
READ_CELLS = """grid => {
    const rows = {};
    const place = cell => [parseFloat(cell.style.top), parseFloat(cell.style.left)];
    const cells = [...grid.firstElementChild.children].sort((a, b) => place(a)[1] - place(b)[1]);
    for (const cell of cells) (rows[place(cell)[0]] ??= []).push(cell.innerText.trim());
    return rows;
}"""
IS_SCROLLED = """([grid, top]) => [...grid.firstElementChild.children].some(
    cell => parseFloat(cell.style.top) <= top && top < parseFloat(cell.style.top) + cell.offsetHeight)"""

HAS_ONE_CURVE = """() => {
    const plots = document.querySelectorAll(".js-plotly-plot");
    return plots.length === 1 && plots[0].querySelector(".scatterlayer .js-line") && plots[0].data[0].y.length > 1;
}"""


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StackSettings]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    names = ("prefect_port", "mlflow_port", "s3_port")
    home = tmp_path_factory.mktemp("stack")
    settings = StackSettings(project=REPOSITORY, home=home, **dict(zip(names, ports, strict=True)))
    stack.up(settings)
    yield settings
    stack.down(settings)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pictures(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the screenshots, told on the terminal."""
    folder = tmp_path_factory.mktemp("pages")
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\nscreenshots: {folder}")
    return folder


@pytest.fixture
def page(browser: Any, pictures: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """An empty page; how the test leaves it is kept as a picture, whether it passes or not."""
    page = open_page(browser)
    yield page
    page.screenshot(path=pictures / f"{request.node.name}.png")
    page.context.close()


@pytest.fixture(scope="module")
def run(settings: StackSettings, browser: Any, pictures: Path) -> dict[str, Any]:
    """The ended flow run of the preset `tiny`, started from the form."""
    page = open_page(browser)
    open_form(page, settings)
    field = find_field(page.locator("body"), "preset")
    field.get_by_role("button", name="str", exact=True).click()
    # By keyboard: on a click, Prefect's list opens and closes at once in Chromium 156 (all lists of its pages do).
    field.locator("fieldset").get_by_role("button").press("ArrowDown")
    page.get_by_role("option", name="tiny", exact=True).click()
    field.scroll_into_view_if_needed()
    page.screenshot(path=pictures / "form-filled.png")
    with page.expect_response(re.compile("/create_flow_run$")) as response:
        page.get_by_role("button", name="Submit").click()
    assert response.value.ok, response.value.text()
    run_id = response.value.json()["id"]
    page.context.close()
    return await_run(settings, run_id)


@pytest.fixture(scope="module")
def comparison(settings: StackSettings, run: dict, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Artifact]:
    """The ablation's COMPARISON artifact, from the stack's store."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.environment().items():
            patch.setenv(name, value)
        patch.setenv("MZSANE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield ArtifactStore.from_environment().open(plan_comparison_stage(TINY).work.ref)


@pytest.fixture(scope="module")
def rows(comparison: Artifact) -> pl.DataFrame:
    """The measurements, as they are in the store."""
    return pl.read_parquet(comparison.path("comparison.parquet"))


@pytest.fixture(scope="module")
def tracked(settings: StackSettings, run: dict) -> dict[str, str]:
    """MLflow's run ids by run name, and the experiment's id as `experiment`."""
    api = f"{settings.mlflow_url}/api/2.0/mlflow"
    reply = httpx.get(f"{api}/experiments/get-by-name", params={"experiment_name": TINY.name}, timeout=60)
    experiment = reply.raise_for_status().json()["experiment"]["experiment_id"]
    reply = httpx.post(f"{api}/runs/search", json={"experiment_ids": [experiment]}, timeout=60)
    infos = [found["info"] for found in reply.raise_for_status().json()["runs"]]
    return {"experiment": experiment} | {info["run_name"]: info["run_id"] for info in infos}


def open_page(browser: Any) -> Any:
    page = browser.new_context(viewport={"width": 1440, "height": 1000}).new_page()
    page.set_default_timeout(PATIENCE)
    return page


def open_form(page: Any, settings: StackSettings, deployment: str = "zoo-composition") -> None:
    """Go to the deployment's "custom run" form as a person does."""
    page.goto(f"{settings.prefect_url}/deployments")
    page.get_by_role("link", name=deployment, exact=True).first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    page.get_by_role("button", name="Submit").wait_for()


def find_field(parent: Any, label: str, last: bool = False) -> Any:
    """A field of the form, by its label, whether or not it is optional: the first of that label, or the last."""
    own_label = parent.page.locator(":scope > .p-label__header .schema-form-property__label")
    labelled = own_label.filter(has_text=re.compile(rf"^{label}( \(Optional\))?$"))
    found = parent.locator(".schema-form-property").filter(has=labelled)
    return found.last if last else found.first


def await_run(settings: StackSettings, run_id: str) -> dict[str, Any]:
    address = f"{settings.prefect_url}/api/flow_runs/{run_id}"
    while (run := httpx.get(address, timeout=60).raise_for_status().json())["state_type"] not in ENDED:
        time.sleep(1)
    log = (settings.home / "logs" / "worker.log").read_text(errors="replace")
    assert run["state_type"] == "COMPLETED", f"{run['state']}\n{log[-5000:]}"
    return run


def open_tab(page: Any, settings: StackSettings, run_id: str, tab: str) -> None:
    page.goto(f"{settings.prefect_url}/runs/flow-run/{run_id}")
    page.get_by_role("tablist").get_by_text(tab, exact=True).click()


def open_artifact(page: Any, settings: StackSettings, run: dict[str, Any], kind: str, key: str) -> None:
    """Click an artifact's card on the run's page."""
    open_tab(page, settings, run["id"], "Artifacts")
    page.get_by_role("link", name=re.compile(rf"^\s*{kind}\s+{key}\b", re.IGNORECASE)).click()
    page.wait_for_url("**/artifacts/artifact/**")


def expect_help(page: Any, *kinds: type) -> None:
    """Wait for the form to show the help text of every field of some configs; it is drawn bit by bit."""
    from playwright.sync_api import expect

    for kind in kinds:
        for field in kind.model_fields.values():
            expect(page.locator("form")).to_contain_text(field.description)


def metric_values(rows: pl.DataFrame, arm: str) -> dict[str, float]:
    """What MLflow shows of an arm's measurements: for each metric the value at the last step."""
    values = {}
    for row in rows.filter(arm=arm).sort("finetune_epochs").iter_rows(named=True):
        for measure in ("accuracy", "loss", "calibration"):
            seen = row["sees"] if row["finetune_epochs"] == 0 else "finetuned"
            method = row["method"] if row["ensemble"] == 1 else f"{row['method']}-ensemble-{row['ensemble']}"
            if row["method"] == "distilled_init":
                method += f"-{row['gradient_steps']}"
            values[f"{row['target']}/{method}/{seen}/{measure}"] = row[f"{measure}_mean"]
    return values


def find_section(page: Any, heading: str) -> Any:
    """A folding section of MLflow's compare page."""
    return page.locator(".du-bois-light-collapse-item").filter(has=page.get_by_role("button", name=heading, exact=True))


def read_parameters(page: Any) -> dict[str, list[str]]:
    """The parameters on the compare page: name and, in the order of the runs, values."""
    find_section(page, "Parameters").get_by_role("rowheader").first.wait_for()
    table = find_section(page, "Parameters").locator("tbody")
    cells = table.evaluate("body => [...body.rows].map(row => [...row.cells].map(cell => cell.innerText.trim()))")
    return {name: values for name, *values in cells}


def read_metrics(page: Any) -> dict[str, list[str]]:
    """The metrics on the compare page, scrolling through them: only the rows in sight exist."""
    names, values = (find_section(page, "Metrics").locator(".ReactVirtualized__Grid").nth(part) for part in (0, 1))
    values.scroll_into_view_if_needed()
    height, step = values.evaluate("grid => [grid.scrollHeight, grid.clientHeight / 2]")
    found: dict[str, list[str]] = {}
    top = 0.0
    while top < height:
        reached = values.evaluate("(grid, top) => { grid.scrollTop = top; return grid.scrollTop }", top)
        for grid in (names, values):
            page.wait_for_function(IS_SCROLLED, arg=[grid.element_handle(), reached])
        cells = values.evaluate(READ_CELLS)
        found |= {name: cells[place] for place, [name] in names.evaluate(READ_CELLS).items() if place in cells}
        top += step
    return found


def test_form_explains_every_field(page: Any, settings: StackSettings) -> None:
    open_form(page, settings)
    kinds = (AblationConfig, ZooConfig, TokensConfig, CompositionConfig, SliceConfig)
    kinds += (BackboneConfig, SamplingConfig, EvaluationConfig, ExecutionConfig)
    expect_help(page, *kinds)


@pytest.mark.parametrize(
    ("deployment", "kinds"),
    [("train", (ZooConfig, NetworkConfig, FactorsConfig, DigitsConfig)), ("download", (DownloadConfig,))],
)
def test_zoo_forms_explain_every_field(page: Any, settings: StackSettings, deployment: str, kinds: tuple) -> None:
    open_form(page, settings, deployment)
    expect_help(page, *kinds)


def test_zoo_can_be_read_by_the_form_too(page: Any, settings: StackSettings) -> None:
    open_form(page, settings, "train")
    page.get_by_role("button", name="ReadConfig", exact=True).click()
    find_field(page.locator("body"), "Measure").wait_for()
    expect_help(page, ReadConfig)


def test_card_of_a_trained_zoo_is_shown(page: Any, settings: StackSettings) -> None:
    zoo = TINY.zoos[0].model_copy(update={"name": "carded", "models": 2, "epochs": 2, "keep_epochs": 1})
    api = f"{settings.prefect_url}/api"
    deployment = httpx.get(f"{api}/deployments/name/zoo/train", timeout=60).raise_for_status().json()["id"]
    body = {"parameters": {"zoo": zoo.model_dump(mode="json")}, "state": {"type": "SCHEDULED"}}
    reply = httpx.post(f"{api}/deployments/{deployment}/create_flow_run", json=body, timeout=60)
    run = await_run(settings, reply.raise_for_status().json()["id"])
    open_artifact(page, settings, run, "markdown", "card-carded")
    page.get_by_role("cell", name="weights a model", exact=True).wait_for()
    cells = page.get_by_role("cell").all_inner_texts()
    assert cells[cells.index("models") + 1] == "2"
    assert cells[cells.index("weights a model") + 1] == "2,464"
    open_artifact(page, settings, run, "image", "card-carded-epochs")
    picture = page.locator("img[src^='data:image/png']")
    picture.wait_for()
    assert picture.evaluate("image => image.naturalWidth") > 500


def test_form_is_filled_with_the_demo(page: Any, settings: StackSettings) -> None:
    open_form(page, settings)
    # Compositions, which stand before it, may have a backbone of their own.
    backbone = find_field(find_field(page.locator("body"), "config"), "Backbone", last=True)
    rate = find_field(backbone, "Learning Rate")
    rate.scroll_into_view_if_needed()
    assert BackboneConfig.model_fields["learning_rate"].description in rate.inner_text()
    assert float(rate.locator("input").input_value()) == DEMO.backbone.learning_rate


def test_run_page_shows_the_arms(page: Any, settings: StackSettings, run: dict, pictures: Path) -> None:
    from playwright.sync_api import expect

    page.goto(f"{settings.prefect_url}/runs/flow-run/{run['id']}")
    expect(page.locator("header").get_by_text(f"ablation-{TINY.name}", exact=True).first).to_be_visible()
    expect(page.locator("header").get_by_text("Completed", exact=True)).to_be_visible()
    expect(page.get_by_text(re.compile(r"comparison tiny: done"))).to_be_visible()
    page.screenshot(path=pictures / "run-logs.png")
    page.get_by_role("tablist").get_by_text("Subflow Runs", exact=True).click()
    for arm in ARMS:
        item = page.locator(".flow-run-list-item", has=page.get_by_role("link", name=f"arm-{arm}", exact=True))
        expect(item.get_by_text("Completed", exact=True)).to_be_visible()


def test_artifacts_tab_lists_the_results(page: Any, settings: StackSettings, run: dict) -> None:
    from playwright.sync_api import expect

    open_tab(page, settings, run["id"], "Artifacts")
    for kind, key in (("table", "comparison"), ("image", "accuracy"), ("markdown", "findings")):
        card = page.get_by_role("link", name=re.compile(rf"^\s*{kind}\s+{key}\b", re.IGNORECASE))
        expect(card).to_be_visible()


def test_table_equals_the_stored_comparison(page: Any, settings: StackSettings, run: dict, rows: pl.DataFrame) -> None:
    open_artifact(page, settings, run, "table", "comparison")
    page.locator("tbody tr").nth(len(rows) - 1).wait_for()
    shown_columns = page.locator("thead th").all_inner_texts()
    assert {"composition", "seed", "target", "method", "sees", "accuracy_mean"} <= set(shown_columns)
    shown = page.locator("tbody").evaluate(
        "body => [...body.rows].map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    assert len(shown) == len(rows)
    parse: dict[type, Callable[[str], Any]] = {
        str: str,
        int: int,
        float: float,
        bool: lambda text: text == "true",
    }
    for texts, row in zip(shown, rows.select(shown_columns).iter_rows(), strict=True):
        for column, text, value in zip(shown_columns, texts, row, strict=True):
            expected = pytest.approx(value, abs=5.1e-5) if isinstance(value, float) else value
            assert (parse[type(value)](text) if value is not None else text or None) == expected, (column, texts)


def test_figure_is_the_stored_one(page: Any, settings: StackSettings, run: dict, comparison: Artifact) -> None:
    open_artifact(page, settings, run, "image", "accuracy")
    image = page.locator("img[src^='data:image/png']")
    image.wait_for()
    page.wait_for_function("image => image.complete", arg=image.element_handle())
    assert image.evaluate("image => image.naturalWidth") > 0
    encoded = image.get_attribute("src").partition(",")[2]
    assert base64.b64decode(encoded) == comparison.path("accuracy.png").read_bytes()


def test_findings_say_what_the_comparison_says(
    page: Any, settings: StackSettings, run: dict, comparison: Artifact, rows: pl.DataFrame, tracked: dict[str, str]
) -> None:
    open_artifact(page, settings, run, "markdown", "findings")
    page.get_by_role("heading", name=TINY.name, exact=True).wait_for()
    text = " ".join(page.locator("body").inner_text().split())
    _, findings = read_answers(comparison)
    sentences = [" ".join(sentence.split()) for sentence in findings.overall]
    assert sentences
    assert [sentence for sentence in sentences if sentence not in text] == []
    assert comparison.address in text
    assert tracked[TINY.name] in page.locator("body").inner_html()
    assert page.locator("table").count() == 1


def test_arm_page_shows_progress(page: Any, settings: StackSettings, run: dict) -> None:
    from playwright.sync_api import expect

    open_tab(page, settings, run["id"], "Subflow Runs")
    page.get_by_role("link", name=f"arm-{ARMS[0]}", exact=True).click()
    page.get_by_role("tablist").get_by_text("Artifacts", exact=True).click()
    card = page.locator(".artifact-card", has_text=re.compile("progress", re.IGNORECASE))
    expect(card).to_contain_text(f"backbone {ARMS[0]}")
    artifacts = httpx.post(f"{settings.prefect_url}/api/artifacts/filter", json={}, timeout=60).json()
    progress = {artifact["description"]: artifact["data"] for artifact in artifacts if artifact["type"] == "progress"}
    expected = {f"backbone {arm}": 100 for arm in ARMS} | {f"zoo {zoo.name}": 100 for zoo in TINY.zoos}
    assert {label: progress.get(label) for label in expected} == expected


def test_mlflow_nests_the_arms(page: Any, settings: StackSettings, tracked: dict[str, str], pictures: Path) -> None:
    from playwright.sync_api import expect

    page.goto(f"{settings.mlflow_url}/#/experiments/{tracked['experiment']}/runs?workflowType=machine_learning")
    parent = page.get_by_role("row").filter(has=page.get_by_role("link", name=TINY.name, exact=True))
    parent.wait_for()
    page.screenshot(path=pictures / "mlflow-experiment.png")
    parent.get_by_role("button").first.click()
    for arm in ARMS:
        expect(page.get_by_role("gridcell").get_by_role("link", name=arm, exact=True)).to_be_visible()


def test_mlflow_compares_the_arms(
    page: Any, settings: StackSettings, tracked: dict[str, str], rows: pl.DataFrame, pictures: Path
) -> None:
    from playwright.sync_api import expect

    query = {
        "runs": json.dumps([tracked[arm] for arm in ARMS]),
        "experiments": json.dumps([tracked["experiment"]]),
        "workflowType": "machine_learning",
    }
    page.goto(f"{settings.mlflow_url}/#/compare-runs?{urlencode(query)}")
    names = page.get_by_role("row").filter(has_text="Run Name:")
    for arm in ARMS:
        expect(names).to_contain_text(arm)
    page.screenshot(path=pictures / "mlflow-compare.png")
    shown = [name for name in names.inner_text().split() if name in ARMS]
    assert sorted(shown) == sorted(ARMS)

    parameters = read_parameters(page)
    compositions = {arm.name: arm.composition.name for arm in list_arms(TINY)}
    assert parameters["composition"] == [compositions[arm] for arm in shown]
    assert parameters["backbone.steps"] == [str(TINY.backbone.steps)] * len(shown)

    metrics = read_metrics(page)
    for number, arm in enumerate(shown):
        expected = metric_values(rows, arm)
        assert expected
        values = {name: float(metrics[name][number]) for name in expected}
        assert values == pytest.approx(expected, abs=5.1e-4)


def test_mlflow_draws_the_loss_of_an_arm(
    page: Any, settings: StackSettings, tracked: dict[str, str], comparison: Artifact
) -> None:
    address = f"{settings.mlflow_url}/#/experiments/{tracked['experiment']}/runs/{tracked[ARMS[0]]}/model-metrics"
    page.goto(address)
    page.get_by_placeholder("Search metric charts").fill("pretrain/loss$")
    page.wait_for_function(HAS_ONE_CURVE)
    curve = page.evaluate("() => Array.from(document.querySelector('.js-plotly-plot').data[0].y)")
    curves = pl.read_parquet(comparison.path("curves.parquet"))
    assert curve == pytest.approx(curves.filter(arm=ARMS[0], metric="loss").sort("step")["value"].to_list())
