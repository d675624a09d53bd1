"""A run's configuration is refused with one clear line wherever it does not fit."""

import pytest

from pipeline import config
from transform.contract import ContractError

GOOD = """
name: mine
contract: microvideo
splits: {by: time, train: 0.8, valid: 0.1, test: 0.1}
models:
  ranker:
    gates: [{metric: auc, at_least: 0.7, change: 0.01}]
"""


def load(tmp_path, text: str) -> config.RunConfig:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return config.load(str(path))


@pytest.mark.parametrize("name", ["demo", "movielens"])
def test_built_in_configurations_load(name):
    assert config.load(name).name == name


CLIPS = """
name: mine
contract: microvideo
clips: {frames: 8, size: 32}
models:
  video_classifier:
    gates: [{metric: accuracy, at_least: 0.7}]
"""


def test_a_model_of_clips_needs_their_shape(tmp_path):
    assert load(tmp_path, CLIPS).clips.frames == 8
    with pytest.raises(ContractError, match="a model of clips needs to know their shape: add `clips:"):
        load(tmp_path, CLIPS.replace("clips: {frames: 8, size: 32}\n", ""))


def test_gates_name_what_is_measured_of_the_model(tmp_path):
    with pytest.raises(ContractError, match="video_classifier: unknown metric 'auc': expected one of accuracy"):
        load(tmp_path, CLIPS.replace("accuracy", "auc"))


TOPICS = """
name: mine
contract: microvideo
topics: {topics: 8, cover_size: 32}
queues: {topics: 2}
models:
  topic_representation:
    model: {experts: 2}
    gates: [{metric: primary_hits, at_least: 0.7}]
"""


def test_settings_of_topics_and_queues_arrive(tmp_path):
    found = load(tmp_path, TOPICS)
    assert (found.topics.topics, found.topics.cover_size, found.queues.topics) == (8, 32, 2)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "topics: {topics: 8, cover_size: 32}\n",
            "",
            "topic_representation is there to learn topics with",
        ),
        ("experts: 2", "cover_size: 32", "the size of covers is a setting of `topics`"),
        ("topics: 8", "topic: 8", r"topics.topic: unknown key (did you mean 'topics'?)"),
        (
            "queues: {topics: 2}",
            "queues: {topics: 0}",
            "queues.topics: Input should be greater than or equal to 1",
        ),
        ("primary_hits", "auc", "unknown metric 'auc': expected one of primary_hits, secondary_hits, tags_hits"),
    ],
)
def test_bad_settings_of_topics_name_key_and_remedy(tmp_path, old, new, expected):
    assert old in TOPICS
    with pytest.raises(ContractError, match=r"run\.yaml") as caught:
        load(tmp_path, TOPICS.replace(old, new))
    assert expected in str(caught.value)


def test_unknown_clip_settings_are_refused_with_a_hint(tmp_path):
    with pytest.raises(ContractError, match=r"clips.frame: unknown key \(did you mean 'frames'\?\)"):
        load(tmp_path, CLIPS.replace("frames: 8", "frame: 8"))


def test_gate_values_arrive(tmp_path):
    gate = load(tmp_path, GOOD).models["ranker"].gates[0]
    assert (gate.metric, gate.at_least, gate.change, gate.slices) == ("auc", 0.7, 0.01, ())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("name: mine", "nome: mine", "nome: unknown key (did you mean 'name'?)"),
        ("train: 0.8", "train: 0.9", "must add up to 1, got 1.1"),
        ("by: time", "by: luck", "'time' or 'hash', got 'luck'"),
        ("ranker:", "ranger:", "unknown model 'ranger': expected one of ranker"),
        ("metric: auc", "metric: acu", "unknown metric 'acu': expected one of auc, logloss"),
        ("metric: auc", "metric: calibration", "calibration is best at 1"),
        ("at_least: 0.7, ", "", "a change threshold alone passes everything"),
        ("at_least: 0.7, ", "at_most: 0.99, ", "a change threshold and no at_least"),
        ("metric: auc", "metric: logloss", "a change threshold and no at_most"),
        ("    gates:", "    gates: []\n    gates:", "the key 'gates' is given twice"),
        ("change: 0.01", "change: -1", "greater than or equal to 0, got -1"),
        ("[{metric: auc, at_least: 0.7, change: 0.01}]", "[]", "at least 1 item"),
        ("contract: microvideo", "", "contract: Field required"),
        ("splits:", "splits: [", "not valid YAML"),
    ],
)
def test_bad_configuration_names_key_and_remedy(tmp_path, old, new, expected):
    assert old in GOOD
    with pytest.raises(ContractError, match=r"run\.yaml") as caught:
        load(tmp_path, GOOD.replace(old, new))
    assert expected in str(caught.value)


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "run.yaml").write_bytes(GOOD.replace("mine", "m\u00efne").encode("latin-1"))
    with pytest.raises(ContractError, match=r"run.yaml: expected UTF-8, .* at byte \d+: save it as UTF-8"):
        config.load(str(tmp_path / "run.yaml"))


def test_unknown_name_lists_the_built_in_ones():
    with pytest.raises(ContractError, match="expected one of clips, demo, movielens"):
        config.load("movieless")


# 2026-11-01 is the 20,758th day since 1970.
@pytest.mark.parametrize(
    "first", ["2026-11-01", "2026-11-01T00:00:00Z", "2026-11-01T02:00:00+02:00", str(20_758 * 86_400)]
)
def test_spans_are_windows_of_equal_length(tmp_path, first):
    spans = load(tmp_path, f"{GOOD}spans: {{first: {first}, hours: 6, drift: {{hour_of_day: 0.2}}}}\n").spans
    start = 20_758 * 86_400
    assert [spans.window(number) for number in (0, 5)] == [(start, start + 21_600), (start + 108_000, start + 129_600)]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ("{first: tomorrow}", r"spans\.first: .*got 'tomorrow'"),
        ("{first: 2026-11-01, drift: {hour_of_day: 1.5}}", r"spans\.drift\.hour_of_day: .*less than or equal to 1"),
        ("{first: 2026-11-01, keep: 1}", r"spans\.keep: .*greater than or equal to 2"),
        ("{frist: 2026-11-01}", r"spans\.frist: unknown key.*'first'.*rename it"),
        ("{days: 2}", r"spans\.days: unknown key: remove it"),
    ],
)
def test_bad_spans_name_key_and_bound(tmp_path, spans, expected):
    with pytest.raises(ContractError, match=expected):
        load(tmp_path, f"{GOOD}spans: {spans}\n")
