import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_model_analysis as tfma

from pipeline.report import charts
from pipeline.report.gates import gates
from pipeline.report.measured import Measured, measured
from pipeline.report.page import render, write_report
from pipeline.report.records import ModelRecords, RunRecords, load
from transform.contract import ContractError

from .conftest import HOSTILE  # isort: skip


class Page(HTMLParser):
    """Tables by class as lists of rows of cells; all tags with their attributes; all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.values: list[float] = []
        self._open: list[str] | None = None
        self._rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag == "table":
            self._rows = self.tables.setdefault(attributes.get("class") or "", [])
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
            self._open = self._rows[-1]
            if attributes.get("data-value") not in (None, "None"):
                self.values.append(float(attributes["data-value"]))

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self._open = None

    def handle_data(self, data):
        self.text.append(data)
        if self._open is not None:
            self._open[-1] += data.strip()


@pytest.fixture(scope="module")
def html(run_folder, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("page") / "below" / "report.html"
    write_report(load(run_folder), path)
    return path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html) -> Page:
    return Page(html)


def test_every_gate_is_listed_with_its_verdict(page, evaluation):
    expected = [[*g.cells(), "passed" if g.passed else "failed"] for g in gates(evaluation)]
    assert page.tables["gates"][1:] == expected


def test_the_headline_says_that_the_run_was_refused_and_by_which_gates(page):
    text = " ".join("".join(page.text).split())
    assert "Refused" in text
    assert "missed 3 of 12 gates" in text
    assert "auc (floor) of user_novelty = new" in text


def test_every_slice_is_listed_with_its_examples(page, evaluation):
    rows = {row[0]: row[1] for row in page.tables["slices"]}
    for each in measured(evaluation):
        if each.slice:
            assert rows[each.value] == f"{each.examples:,}"
        else:
            assert f"All examples ({each.examples:,})" in "".join(page.text)


def test_the_slice_of_examples_without_a_value_has_a_name():
    without = Measured((("primary_category", ""),))
    assert (without.value, without.name) == ("(none)", "primary_category = (none)")


def test_a_metric_of_all_examples_is_shown_under_its_title_and_its_name_in_the_configuration(page):
    names = [row[0] for row in page.tables["overall"][1:]]
    assert names == ["AUCauc", "Log losslogloss", "NDCG@10ndcg@10"]


def test_numbers_are_those_of_tfma(page, evaluation):
    # Read by TFMA's own loader for views, not by ours.
    result = tfma.load_eval_result(evaluation, model_name="candidate")
    expected = [
        metric["doubleValue"]
        for _, metrics in result.slicing_metrics
        for sub_key in metrics[""].values()
        for name, metric in sub_key.items()
        if name != "example_count" and not name.endswith("_diff") and "doubleValue" in metric
    ]
    assert sorted(page.values) == pytest.approx(sorted(expected))
    assert len(expected) == 5 * 3  # slices x (auc, logloss, ndcg@10)


def test_a_slice_that_failed_its_gate_is_marked_and_no_other(html):
    assert len(re.findall(r'<td class="w failed"', html)) == 2  # auc and logloss of new users


def test_nothing_is_loaded_from_elsewhere(page, html):
    loading = {"src", "href", "srcset", "data", "action", "xlink:href", "poster"}
    assert [(t, a) for t, a in page.tags if loading & set(a)] == []
    assert {t for t, _ in page.tags} & {"script", "link", "iframe", "img", "object", "embed", "base"} == set()
    assert not re.search(r"url\(|@import", html)
    outside_of_data = html.replace("https://evil.example/x.js", "")
    assert "http://" not in outside_of_data
    assert "https://" not in outside_of_data


def test_hostile_text_is_shown_and_not_executed(page, html):
    assert "<script" not in html
    text = "".join(page.text)
    assert text.count(HOSTILE) >= 3  # slice, anomaly, statistics
    assert any(HOSTILE in row[0] for row in page.tables["slices"])


def test_anomalies_rejected_rows_and_statistics_are_shown(page):
    assert page.tables["anomalies"][1] == ["valid", "gender", "Column dropped", f"No example has {HOSTILE}"]
    assert page.tables["rejected"][1] == ["interactions", "2", "unknown video", '{"video_id": "v9"}']
    late = ["interactions", "1", "missing label", '{"user_id": "u1", "video_id": "v1", "at": 5}']
    assert late in page.tables["rejected"]  # refused by ImpressionExampleGen, not by the importer
    ages = next(row for row in page.tables["features"] if row[0] == "video_age_hours")
    assert ages[1:5] == [
        "number",
        "30.0%",
        "1",
        "mean 12.5, from 0 to 90, median 8",
    ]  # 600 of 800 present, of which 40 NaN
    assert next(row for row in page.tables["features"] if row[0] == "title")[2] == "10.0%"  # empty strings
    text = " ".join(" ".join(page.text).split())
    assert "splits: test from 2023-11-14 22:13 UTC" in text
    for rows in ("train: 800 examples", "valid: 100 examples", "test: 100 examples"):
        assert rows in text


def test_steps_are_shown_with_time_cache_and_rows(page):
    assert page.tables["steps"][1] == ["ImpressionExampleGen", "12.2 s", "", "no", "1,000"]
    assert page.tables["steps"][2] == ["Trainer.ranker", "1 min 1 s", "", "yes", ""]


def test_training_curves_have_a_point_an_epoch(page):
    labels = [a["aria-label"] for t, a in page.tags if t == "svg" and a.get("role") == "img"]
    assert labels == ["Calibration", "Loss by epoch", "AUC by epoch", "Rows per second by epoch"]
    dots = [a for t, a in page.tags if t == "circle" and a["class"] == "dot series1"]
    assert len(dots) == 2 * 6  # validation loss and AUC of six epochs


def test_a_run_that_failed_early_says_what_is_missing():
    run = RunRecords("r", "w", "failed", 0.0, 1.0, error="the <data> does not fit")
    page = Page(render(run))
    text = " ".join("".join(page.text).split())
    assert "Failed" in text
    assert "the <data> does not fit" in text
    for missing in ("The data was not validated.", "The run ended before statistics were made.", "No step ran."):
        assert missing in text


def test_the_newest_run_of_a_folder_is_read(tmp_path):
    import os

    for name, changed in (("old", 100), ("new", 200)):
        record = tmp_path / name / "run.json"
        record.parent.mkdir()
        run = {"id": name, "world": "w", "outcome": "failed", "started": 0, "finished": 1}
        run |= {"config": {}, "contract": "{}", "models": "m"}
        record.write_text(json.dumps(run), encoding="utf-8")
        os.utime(record, (changed, changed))
    assert load(tmp_path).id == "new"


@pytest.mark.parametrize("content", [None, "{", '{"id": "r"}'])
def test_a_folder_without_a_readable_run_is_refused(tmp_path: Path, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content, encoding="utf-8")
    with pytest.raises(ContractError, match=r"run\.json"):
        load(tmp_path)


def test_a_bar_is_as_long_as_its_share_of_the_axis():
    # 0.75 lies halfway between 0.5 and 1: half of 100; a value below the axis has no length.
    assert 'class="fill" width="50.00"' in charts.bar(0.75, 0.5, 1)
    assert 'class="fill" width="0.00"' in charts.bar(0.2, 0.5, 1)
    assert 'class="fill" width="0.00"' in charts.bar(float("nan"), 0, 1)


def test_a_line_chart_leaves_out_what_is_not_finite_and_escapes_names():
    chart = charts.lines("<t>", {"<s>": [(1, 0.5), (2, float("nan")), (3, 0.7)]})
    assert chart.count("<circle") == 2
    assert "<s>" not in chart
    assert "<t>" not in chart
    assert charts.lines("t", {"s": [(1, float("inf"))]}) == ""


def test_a_classifier_shows_each_category_and_what_it_is_taken_for():
    # labels: cats 4 (3 right, 1 taken for a dog), dogs 2 (1 right, 1 taken for a cat), 1 never trained on
    confusion = {(0, 0): 3.0, (0, 1): 1.0, (1, 1): 1.0, (1, 0): 1.0, (-1, 0): 1.0}
    model = ModelRecords("video_classifier", classes=("cats", "dogs"), confusion=confusion)
    page = Page(render(RunRecords("r", "w", "pushed", 0, 1, models=(model,))))
    assert page.tables["classes"][1:] == [
        ["(not trained on)", "1", "0.0%", "0.0%", "", "cats 1"],
        ["cats", "4", "60.0%", "75.0%", "", "dogs 1"],
        ["dogs", "2", "50.0%", "50.0%", "", "cats 1"],
    ]


def test_media_that_give_no_clip_are_counted_with_their_reason(run_folder, tmp_path):
    clips, folder = tmp_path / "clips", tmp_path / "run"
    clips.mkdir()
    folder.mkdir()
    (clips / "summary.json").write_text(json.dumps({"rows": {"train": 7}, "settings": {"size": 32}}))
    columns = {"video_id": ["v1"], "media_path": ["a.mp4"], "reason": ["empty file"], "detail": ["0 bytes"]}
    pq.write_table(pa.table(columns), clips / "rejected.parquet")
    run = json.loads((run_folder / "run.json").read_text())
    run["artifacts"] = {"ranker": {"clips": str(clips)}}
    (folder / "run.json").write_text(json.dumps(run))
    records = load(folder)
    assert records.counts == {"clips": {"rows": {"train": 7}}}
    assert ("media", "empty file", 1) in [(each.table, each.reason, each.count) for each in records.rejected]
