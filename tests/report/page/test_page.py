"""The page answers first, is complete in itself, safe to open, and true."""

import base64
import json
import re
import zlib
from html.parser import HTMLParser

import polars as pl
import pytest

from mzsane.report.answers import DEFAULT_QUESTION, Answer
from mzsane.report.page.page import Facts, render_report
from mzsane.report.statistics.convergence import describe_failed
from mzsane.report.statistics.duel_summary import SUMMARY_SCHEMA
from mzsane.report.statistics.duels import find_strongest
from mzsane.report.statistics.leaders import LEADER_SCHEMA
from tests.report.made_up import make_ablation, make_large, make_small

VOID = {"meta", "input", "img", "br", "path", "wbr"}
QUESTION = "Digits, letters or both: what should the zoo be made of?"
SENTENCE = "Both: samples are 1.4 points [0.3 to 2.5] more accurate."


class Reader(HTMLParser):
    """Collects what a page loads, its text by tag, and whether its tags close."""

    def __init__(self, page):
        super().__init__()
        self.loads, self.tags, self.ids, self.open = [], [], [], []
        self.texts = {}
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href", "data", "srcset")]
        self.ids += [value for name, value in attributes if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)


def render(made, sentence=SENTENCE, **more):
    """Render with one answer, whose first two arguments are the question and the sentence."""
    return render_report(answers=[make_answer(QUESTION, sentence)], **{**made, **more})


def make_answer(question, sentence):
    return Answer(question, sentence, 0.014, 0.003, 0.025, "yes")


def read_payload(page):
    """What the page's script reads."""
    packed = page.split('id="payload">')[1].split("</script>")[0]
    return json.loads(zlib.decompress(base64.b64decode(packed)))


@pytest.fixture(scope="module")
def small():
    return make_small()


@pytest.fixture(scope="module")
def page(small):
    return render(small, facts=Facts("2026-12-01", "cf98814abcdef", "two cores", 4.2))


def test_first_screen_has_the_question_the_answer_and_the_accuracies(page):
    reader = Reader(page)
    assert reader.texts["h1"] == [QUESTION]
    assert f"<title>{QUESTION} · made-up</title>" in page
    assert f'<p class="answer">{SENTENCE}</p>' in page
    assert page.index(SENTENCE) < page.index('id="accuracy"') < page.index('id="novelty"') < page.index('id="duels"')
    assert "2026-12-01 · commit cf98814abc · two cores · 4.2 minutes" in page
    assert "4 compositions, 1 seed, 3 targets, 504 measurements" in page


def test_accuracies_and_duels_are_there_without_scripts(page, small):
    body = page.split('id="accuracy"')[1].split("</tbody>")[0]
    rows = small["rows"].filter(method="samples", finetune_epochs=0, ensemble=1)
    for accuracy in rows["accuracy_mean"]:
        assert f"<b>{accuracy:.3f}</b>" in body
    assert body.count('class="accuracy inside"') == rows["in_distribution"].sum()
    duels = small["duels"]
    cells = re.findall(r'<td class="(win|tie|loss|untested)( inside)?"', page)
    strongest = [find_strongest(duels, "samples", epochs) for epochs in (0, 3)]
    duels = pl.concat([duels, *strongest])
    assert len(cells) == duels.height
    for verdict, symbol in {"win": "▲", "tie": "=", "loss": "▼", "untested": "?"}.items():
        count = duels.filter(verdict=verdict).height
        assert count > 0
        assert page.count(f'<span aria-label="{verdict}">{symbol}</span>') == count


def test_a_duel_tells_its_interval_and_its_units(page, small):
    row = small["duels"].row(0, named=True)
    low, high = (f"{100 * row[name]:+.1f}" for name in ("low", "high"))
    assert f"95 % {low} to {high}, over 10 anchors" in page
    assert "not tested: 2 anchors, and a test needs three" in page


def test_a_failed_backbone_is_the_first_sentence_and_is_said_once():
    made = make_ablation({"digits": (40, 1, 1), "broken": (40, 1, 1)}, {"digits": 0.9}, [0])
    failure = describe_failed(made["convergence"])
    assert failure.startswith("The backbone of broken-s0 has failed: what is reconstructed is 42 points less accurate")
    page = render(made, f"{failure} {SENTENCE}")
    assert page.count(failure) == 1
    assert f'<p class="failed">{failure}</p>' in page
    assert page.index(failure) < page.index(f'<p class="answer">{SENTENCE}</p>')


def test_answers_to_the_same_question_stand_together_and_others_apart(small):
    answers = [make_answer(QUESTION, "Inside yes."), make_answer(QUESTION, "Outside no."), make_answer("More?", "Tie.")]
    page = render_report(answers=answers, **small)
    head = page[: page.index('id="accuracy"')]
    assert "Inside yes." in head
    assert "Outside no." in head
    assert "Tie." not in head
    assert "<dt>More?</dt><dd>Tie.</dd>" in page


def test_duels_pooled_over_compositions_stand_above_their_cells(small):
    first = small["duels"].row(0, named=True)
    pooled = {name: first[name] for name in SUMMARY_SCHEMA if name in first}
    numbers = {"difference": 0.021, "low": 0.004, "high": 0.038, "units": 4, "unit_kind": "compositions"}
    summary = pl.DataFrame([{**pooled, **numbers, "verdict": "win"}], schema=SUMMARY_SCHEMA)
    page = render(small, summary=summary)
    line = "▲ in distribution: +2.1 points (95 %: +0.4 to +3.8, 4 compositions)"
    assert page.count(line) == 1


def test_a_star_only_where_a_test_tells_the_best_from_the_next(small):
    best = {"method": "samples", "sees": "none", "finetune_epochs": 0, "best": "letters"}
    leaders = [{**best, "target": "letters", "verdict": "win"}, {**best, "target": "digits", "verdict": "tie"}]
    page = render(small, leaders=pl.DataFrame(leaders, schema=LEADER_SCHEMA))
    body = page.split('id="accuracy"')[1].split("</tbody>")[0]
    assert body.count("★") == 1
    accuracy = small["rows"].filter(method="samples", composition="letters", target="letters", finetune_epochs=0)
    assert f"<b>{accuracy['accuracy_mean'][0]:.3f} ★</b>" in body


def test_what_the_generator_saw_counts_as_seen(row):
    rows = [row("a", "t", "samples", 0.5, novelty=0.3, generator_sees="images"), row("a", "t", "zoo", 0.9, novelty=1.0)]
    (_, samples), (_, zoo) = sorted(
        zip(
            *(
                read_payload(render_report({}, pl.DataFrame(rows)))["panels"]["novelty-0"]["data"][n]
                for n in ("saw", "seen")
            ),
            strict=True,
        ),
        reverse=True,
    )
    assert (samples, zoo) == ("images", "none")


def test_page_loads_nothing_and_runs_only_its_own_scripts(page):
    reader = Reader(page)
    assert all(load.startswith("#") for load in reader.loads)
    assert not {"link", "img", "iframe", "object"} & set(reader.tags)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page).group(1)
    assert policy.startswith("default-src 'none'; ")
    scripts = policy.split("script-src ")[1]
    assert scripts.count("'sha256-") == 2
    assert "unsafe" not in scripts
    style = page.split("<style>")[1].split("</style>")[0]
    assert "@import" not in style
    assert "url(" not in style


def test_tags_close_and_identifiers_are_unique(page):
    reader = Reader(page)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))
    anchors = {load.removeprefix("#") for load in reader.loads}
    assert anchors <= set(reader.ids)


def test_every_panel_has_a_place_and_data(page, small):
    payload = read_payload(page)
    assert set(payload["panels"]) <= set(Reader(page).ids)
    points = payload["panels"]["novelty-0"]["data"]
    assert {"composition", "name", "accuracy", "novelty"} <= set(points)
    assert (
        len(points["accuracy"])
        == small["rows"].filter(pl.col("novelty_mean").is_not_null(), finetune_epochs=0, target="digits").height
    )
    for panel in payload["panels"].values():
        assert len({len(column) for column in panel["data"].values()}) == 1


def test_every_measurement_is_in_the_table(page, small):
    table = read_payload(page)["measurements"]
    names = [column["name"] for column in table["columns"]]
    assert len(table["values"]) == len(names)
    accuracies = table["values"][names.index("accuracy")]
    assert accuracies == pytest.approx(small["rows"]["accuracy_mean"].to_list(), rel=1e-4)
    assert "architectures" not in names  # one in all compositions
    assert "The same in all rows: seed 0, architectures 1" in page


def test_other_views_of_the_accuracies_are_offered(page, small):
    views = read_payload(page)["views"]
    labels = Reader(page).texts["option"]
    assert len(views) == len(labels)
    assert labels[0] == "samples, zero-shot, sees nothing"
    assert "samples, 3 epochs, sees labels" in labels
    tuned = small["rows"].filter(method="samples", finetune_epochs=3)["accuracy_mean"][0]
    assert f"<b>{tuned:.3f}</b>" in views[labels.index("samples, 3 epochs, sees labels")]


def test_names_are_escaped_everywhere(small):
    evil = "<script>alert('x')</script>"
    made = dict(small)
    for frame in ("rows", "duels", "convergence", "curves", "shares", "latents"):
        names = [name for name in ("composition", "target", "arm", "zoo", "metric") if name in made[frame].columns]
        made[frame] = made[frame].with_columns([(pl.lit(evil) + pl.col(name)).alias(name) for name in names])
    made["provenance"] = [{**entry, "name": evil, "address": evil} for entry in made["provenance"]]
    made["config"] = {"name": evil, evil: evil}
    page = render_report(answers=[make_answer(evil, evil)] * 2, facts=Facts(evil, evil, evil), **made)
    assert evil not in page
    assert "<script>alert" not in page
    assert Reader(page).tags.count("script") == 3  # the data, Vega, and the page's own
    assert all(evil not in view for view in read_payload(page)["views"])
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt;" in page


def test_large_ablation_is_whole_and_fits():
    made = make_large()
    page = render(made)
    assert len(page.encode()) < 3_000_000
    body = page.split('id="accuracy"')[1].split("</tbody>")[0]
    names = made["rows"]["composition"].unique().to_list()
    assert len(names) == 21
    for name in names:
        assert f'data-composition="{name}"' in body
    assert body.count('class="accuracy') == 84
    duels = re.findall(r'<td class="(?:win|tie|loss|untested)', page)
    assert len(duels) == made["duels"].height + 2 * 84  # with the strongest, zero-shot and fine-tuned
    # So many lines cannot be told apart by colour: one is brought out on hover.
    curves = json.dumps(read_payload(page)["panels"]["curves-0"]["spec"])
    assert '"hovered"' in curves
    assert "--c2" not in curves


def test_page_follows_the_reader_s_screen(page):
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_page_without_anything_says_so():
    page = render_report({}, pl.DataFrame())
    assert "Nothing was measured." in page
    assert "No provenance was recorded." in page
    reader = Reader(page)
    assert reader.open == []
    assert "figure" not in reader.tags
    assert reader.texts["h1"] == [DEFAULT_QUESTION]


def test_what_has_nothing_to_say_is_not_drawn(small):
    rows = small["rows"].filter(finetune_epochs=0).with_columns(novelty_mean=None)
    page = render_report(small["config"], rows)
    assert re.findall(r'<figure id="([^"]*)"', page) == ["methods"]
    assert "Fine-tuning" not in Reader(page).texts["a"]


def test_intervals_below_three_units_are_not_shown(row):
    rows = [row("a", "t", "samples", 0.5, spread=0.2), row("a", "t", "zoo", float("nan"))]
    rows = pl.DataFrame(rows).with_columns(clusters=pl.lit(2, pl.Int64))
    page = render_report({}, rows)
    assert "<b>0.500</b> <small></small>" in page
    assert "no interval: fewer than three independent networks or seeds" in page
    assert not re.search(r"\bnan\b", page.split("<main>")[1].split("<script")[0])
