"""The page is complete in itself, safe to open, and true."""

import math
import re
from html.parser import HTMLParser

import polars as pl
import pytest

from mzsane.report.page import render_report

VOID = {"meta", "input", "img", "br"}


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


@pytest.fixture(scope="module")
def page(rows, curves, provenance):
    """The report of the made-up ablation."""
    return render_report("zoo composition", rows, curves, provenance, {"name": "zoo composition", "seeds": [0, 1]})


def test_page_loads_nothing(page):
    reader = Reader(page)
    assert reader.tags.count("svg") + reader.tags.count("img") == 5
    assert all(load.startswith(("#", "data:image/png;base64,")) for load in reader.loads)
    assert "link" not in reader.tags
    assert "@import" not in page
    assert not re.search(r"url\((?!#)", page)
    assert "default-src 'none'" in page


def test_tags_close_and_identifiers_are_unique(page):
    reader = Reader(page)
    assert reader.open == []
    assert len(reader.ids) == len(set(reader.ids))


def test_page_asks_the_question_and_answers_it(page):
    reader = Reader(page)
    assert reader.texts["h1"] == ["What should the zoo be made of?"]
    assert "<b>Best composition by selected (sees labels):</b> both on digits and fonts.</li>" in page
    assert "worse than anchor_noise with all 3 compositions" in page
    assert "3 compositions · 2 seeds · 2 targets · 138 measurements" in page


def test_every_measurement_is_in_the_table(page, rows):
    body = page.split('<table id="measurements">')[1].split("</table>")[0]
    assert body.count("<tr>") == rows.height + 1
    assert '<td>both-s1</td><td>both</td><td class="number">1</td><td>fonts</td><td>no</td>' in body


def test_addresses_fingerprints_and_config_are_there(page, provenance):
    for entry in provenance:
        assert page.count(f"<code>{entry['address']}</code>") == 1
    assert "&quot;seeds&quot;: [" in page


def test_names_are_escaped_everywhere(rows, curves, provenance):
    evil = "<script>alert('x')</script>"
    rows = rows.with_columns([(pl.lit(evil) + pl.col(name)).alias(name) for name in ("composition", "target", "arm")])
    curves = curves.with_columns(composition=pl.lit(evil + "digits"), metric=pl.lit("loss " + evil))
    provenance = [{**entry, "name": evil, "address": evil, "arm": evil, "stage": evil} for entry in provenance]
    page = render_report(evil, rows, curves, provenance, {evil: evil})
    assert evil not in page
    assert "<script>alert" not in page
    assert Reader(page).tags.count("script") == 1
    safe = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"
    assert f"<title>{safe} · mzsane</title>" in page
    assert f"<h3>Target: {safe}digits</h3>" in page
    assert f"<td>{safe}both-s0</td><td>{safe}both</td>" in page
    assert f"<code>{safe}</code>" in page
    assert f"&quot;{safe}&quot;: &quot;{safe}&quot;" in page


def test_page_follows_the_reader_s_screen(page):
    assert "prefers-color-scheme: dark" in page
    assert 'name="viewport"' in page


def test_page_without_anything_says_so():
    page = render_report("nothing", pl.DataFrame(), pl.DataFrame(), [], {})
    assert "There is no finite accuracy to compare." in page
    assert "There is nothing to plot." in page
    assert "No provenance was recorded." in page
    assert Reader(page).open == []


def test_page_without_fine_tuning_or_curves_leaves_their_figures_out(rows):
    page = render_report("small", rows.filter(pl.col("finetune_epochs") == 0), pl.DataFrame(), [], {})
    reader = Reader(page)
    assert reader.tags.count("figure") == 2  # heat map and accuracy
    assert "Fine-tuned" not in "".join(reader.texts["b"])


def test_numbers_that_are_not_finite_are_shown_as_such(row):
    rows = pl.DataFrame(
        [row("a", "t", "samples", math.nan, spread=None), row("b", "t", "samples", 0.5, spread=math.inf)]
    )
    page = render_report("nan", rows.with_columns(loss_mean=None), pl.DataFrame(), [], {})
    body = page.split('<table id="measurements">')[1].split("</table>")[0]
    # Of one accuracy, spread and interval, of the other spread and interval; of both loss and novelty.
    assert body.count(">n/a</td>") == 9
    assert body.count(">–</td>") == 6  # learning rate, images of a class and number chosen from do not apply
    assert "None" not in body
    assert "Left out: 1 measurement without a finite accuracy." in page
