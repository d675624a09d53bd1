"""The contract refuses what cannot work, and says where and what to do instead."""

import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from transform.contract import BUILT_IN, Contract, ContractError, Kind, Role, load, parse

VALID = """\
name: tiny
vocabularies:
  user_id: {}
  video_id: {max_size: 10, min_count: 2, oov_buckets: 3}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user_id, source: users.user_id}
  - {name: video_id, kind: id, role: video, vocabulary: video_id, source: videos.video_id}
  - {name: seen, kind: history, role: user, vocabulary: video_id, max_length: 4, source: derived.user_history}
  - {name: seconds, kind: number, role: video, scale: log, source: videos.duration_seconds}
  - {name: look, kind: vector, role: video, dimension: 2, source: videos.look}
  - {name: liked, kind: number, role: label, source: interactions.liked, positive_above: 0.5, negative_below: 0.5}
  - {name: newness, kind: id, role: slice, source: derived.user_novelty}
"""

# What is replaced in VALID, by what, the line of the error, and what the message must say (cause and remedy).
REFUSED = {
    "unknown key of a feature": (
        "scale: log",
        "scael: log",
        9,
        ["(feature 'seconds', scael)", "unknown key 'scael'", "did you mean 'scale'?", "allowed are name, kind"],
    ),
    "input from the label's source": (
        "source: videos.duration_seconds",
        "source: interactions.liked",
        9,
        [
            "(feature 'seconds')",
            "interactions.liked is the source of the label 'liked'",
            "give 'seconds' another source",
        ],
    ),
    "slice from the label's source": (
        "source: derived.user_novelty",
        "source: interactions.liked",
        12,
        ["(feature 'newness')", "is the source of the label 'liked'", "or remove it"],
    ),
    "input from the weight's source": (
        "source: videos.duration_seconds}",
        "source: interactions.dwell}\n  - {name: dwell, kind: number, role: weight, source: interactions.dwell}",
        9,
        ["(feature 'seconds')", "interactions.dwell is the source of the weight 'dwell'"],
    ),
    "novelty as an input": (
        "role: slice",
        "role: user, vocabulary: user_id",
        12,
        ["(feature 'newness')", "looks at the whole train split", "expected role slice, got user", "`role: slice`"],
    ),
    "unknown key of a vocabulary": (
        "min_count: 2",
        "minimum_count: 2",
        4,
        ["unknown key 'minimum_count'", "did you mean 'min_count'?", "allowed are max_size, min_count, oov_buckets"],
    ),
    "unknown key of a contract": (
        "name: tiny",
        "name: tiny\nfeature: []",
        2,
        ["unknown key 'feature'", "did you mean 'features'?"],
    ),
    "duplicate name": ("name: look", "name: seconds", 10, ["'seconds' is taken", "every feature needs its own"]),
    "duplicate key": ("scale: log", "scale: log, scale: none", 9, ["'scale' is given twice", "remove one"]),
    "duplicate vocabulary": ("  user_id: {}", "  user_id: {}\n  user_id: {}", 4, ["'user_id' is given twice"]),
    "impossible kind": (
        "kind: vector",
        "kind: tensor",
        10,
        ["(feature 'look', kind)", "'id', 'ids', 'history', 'number', 'text' or 'vector'", "got 'tensor'"],
    ),
    "feedback that a model would read": (
        "kind: vector, role: video, dimension: 2, source: videos.look",
        "kind: ids, role: user, vocabulary: video_id, max_length: 2, source: derived.liked_frames",
        10,
        ["(feature 'look')", "source derived.liked_frames and role feedback go together", "no model learns from it"],
    ),
    "feedback of something else": (
        "kind: id, role: slice, source: derived.user_novelty",
        "kind: ids, role: feedback, max_length: 2, source: videos.tags",
        12,
        ["(feature 'newness')", "source derived.liked_frames and role feedback go together"],
    ),
    "feedback of another kind": (
        "role: slice, source: derived.user_novelty",
        "role: slice, source: derived.liked_frames",
        12,
        ["source derived.liked_frames has kind ids"],
    ),
    "impossible role": ("role: slice", "role: slices", 12, ["'slice' or 'feedback'", "got 'slices'"]),
    "impossible scale": ("scale: log", "scale: ln", 9, ["'none', 'zscore', 'log' or 'minmax'", "got 'ln'"]),
    "history without vocabulary": (
        "role: user, vocabulary: video_id, max",
        "role: user, max",
        8,
        ["(feature 'seen')", "kind history needs a vocabulary", "add `vocabulary: NAME`"],
    ),
    "vocabulary on a number": (
        "scale: log",
        "vocabulary: user_id",
        9,
        ["kind number with role video has no vocabulary", "remove it"],
    ),
    "vocabulary on a slice": (
        "role: slice",
        "role: slice, vocabulary: user_id",
        12,
        ["role slice has no vocabulary", "remove it"],
    ),
    "undeclared vocabulary": (
        "vocabulary: user_id",
        "vocabulary: user_ids",
        6,
        ["'user_ids' is not declared under `vocabularies`", "did you mean 'user_id'?"],
    ),
    "vocabulary that is no file name": ("  user_id: {}", "  ../user_id: {}", 3, ["should match pattern", "../user_id"]),
    "unused vocabulary": ("  user_id: {}", "  user_id: {}\n  genre: {}", 4, ["no feature uses it", "remove it"]),
    "history without length": ("max_length: 4, ", "", 8, ["kind history needs max_length"]),
    "length of an id": ("role: slice", "role: slice, max_length: 3", 12, ["kind id takes no max_length"]),
    "length of zero": (
        "max_length: 4",
        "max_length: 0",
        8,
        ["(feature 'seen', max_length)", "greater than 0", "got 0"],
    ),
    "vector without dimension": ("dimension: 2, ", "", 10, ["kind vector needs a dimension"]),
    "dimension of a number": ("scale: log", "dimension: 2", 9, ["kind number takes no dimension"]),
    "scale of an id": ("role: slice", "role: slice, scale: log", 12, ["scale is for kind number", "remove it"]),
    "default of a vector": ("dimension: 2", "dimension: 2, default: 0", 10, ["default is for kind number"]),
    "minimum above maximum": (
        "scale: log",
        "minimum: 2, maximum: 1",
        9,
        ["minimum 2.0 is above maximum 1.0", "swap them"],
    ),
    "number that is none": ("scale: log", "default: .nan", 9, ["(feature 'seconds', default)", "finite"]),
    "wrong derived kind": (
        "kind: id, role: slice",
        "kind: number, role: context",
        12,
        ["derived.user_novelty has kind id", "write that instead of number"],
    ),
    "unknown derivation": (
        "derived.user_novelty",
        "derived.user_novelti",
        12,
        ["derived.user_novelti is unknown", "did you mean 'user_novelty'?"],
    ),
    "unknown table": ("videos.look", "movies.look", 10, ["'movies.look'", "a table of users, videos, interactions"]),
    "source without column": ("videos.look", "videos", 10, ["expected TABLE.COLUMN"]),
    "derived history of another vocabulary": (
        "role: user, vocabulary: video_id",
        "role: user, vocabulary: user_id",
        8,
        ["derived.user_history holds video ids", "must be 'video_id', got 'user_id'"],
    ),
    "thresholds of a weight": (
        "role: label",
        "role: weight",
        11,
        ["positive_above and negative_below are for role label"],
    ),
    "label without thresholds": (", positive_above: 0.5, negative_below: 0.5", "", 11, ["needs positive_above"]),
    "label with one threshold": (", negative_below: 0.5", "", 11, ["needs positive_above and a negative_below"]),
    "label with crossed thresholds": ("negative_below: 0.5", "negative_below: 0.6", 11, ["that is not larger"]),
    "label that is no number": (
        "kind: number, role: label",
        "kind: id, role: label",
        11,
        ["role label must be kind number with a source in interactions"],
    ),
    "label of a user": ("interactions.liked", "users.liked", 11, ["role label must be kind number"]),
    "slice that is no id": (
        "kind: vector, role: video",
        "kind: vector, role: slice",
        10,
        ["role slice must be kind id"],
    ),
    "no user key": ("users.user_id", "users.name", 5, ["role user and source users.user_id is needed"]),
    "no video key": ("videos.video_id", "videos.name", 5, ["role video and source videos.video_id is needed"]),
    "missing key": ("kind: vector, ", "", 10, ["the key 'kind' is required: add it"]),
    "name with a blank": ("name: look", "name: The look", 10, ["(feature 'The look', name)", "got 'The look'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refuses_with_line_cause_and_remedy(case: str):
    old, new, line, phrases = REFUSED[case]
    assert VALID.count(old) >= 1, "the case no longer fits the text"
    with pytest.raises(ContractError) as caught:
        parse(VALID.replace(old, new, 1), where="tiny.yaml")
    message = str(caught.value)
    assert message.startswith(f"tiny.yaml, line {line}"), message
    for phrase in phrases:
        assert phrase in message


def test_refuses_a_contract_without_a_label_or_with_two():
    label = next(line for line in VALID.splitlines(keepends=True) if "role: label" in line)
    with pytest.raises(ContractError, match="expected one of role label, got 0"):
        parse(VALID.replace(label, ""))
    with pytest.raises(ContractError, match="expected one of role label, got 2"):
        parse(VALID.replace(label, label + label.replace("name: liked", "name: loved")))


def test_refuses_two_weights():
    weight = "  - {name: NAME, kind: number, role: weight, source: interactions.weight}\n"
    one = VALID + weight.replace("NAME", "weight")
    parsed = parse(one).weight
    assert parsed is not None
    assert parsed.name == "weight"
    with pytest.raises(ContractError, match="at most one of role weight, got 2"):
        parse(one + weight.replace("NAME", "other"))


def test_names_every_fault_at_once():
    with pytest.raises(ContractError) as caught:
        parse(VALID.replace("scale: log", "scale: ln").replace("dimension: 2", "dimension: -1"), where="tiny.yaml")
    assert [line.partition(" (")[0] for line in str(caught.value).splitlines()] == [
        "tiny.yaml, line 9",
        "tiny.yaml, line 10",
    ]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_refuses_what_is_not_a_mapping(text: str):
    with pytest.raises(ContractError, match="expected a mapping with name, vocabularies and features"):
        parse(text)


def test_refuses_what_is_not_yaml_and_says_where():
    with pytest.raises(ContractError, match=r"(?s)tiny.yaml: not valid YAML.*line 2, column"):
        parse("name: tiny\nfeatures: [}", where="tiny.yaml")


@pytest.mark.parametrize("name", sorted(path.stem for path in BUILT_IN.glob("*.yaml")))
def test_built_in_contracts_load_and_survive_json(name: str):
    contract = load(name)
    assert contract.name == name
    assert Contract.from_json(contract.to_json()) == contract


def test_unknown_contract_is_refused_with_the_known_ones():
    with pytest.raises(
        ContractError, match=r"'movielense' \(did you mean 'movielens'\?\): expected one of amazon, microvideo"
    ):
        load("movielense")


def test_loads_a_file_by_path(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(VALID, encoding="utf-8")
    assert load(str(path)) == parse(VALID)


def test_features_are_found_by_kind_role_and_name():
    contract = parse(VALID)
    assert [f.name for f in contract.inputs] == ["user_id", "video_id", "seen", "seconds", "look"]
    assert [f.name for f in contract.select(kinds=(Kind.ID,), roles=(Role.USER, Role.SLICE))] == ["user_id", "newness"]
    assert (contract.user_key.name, contract.video_key.name, contract.label.name) == ("user_id", "video_id", "liked")
    assert contract.weight is None
    assert (contract.feature("look").table, contract.feature("look").column) == ("videos", "look")
    with pytest.raises(ContractError, match=r"contract 'tiny' has no feature 'lok' \(did you mean 'look'\?\)"):
        contract.feature("lok")


def test_contract_loads_without_tensorflow():
    script = "import sys, transform.contract as c; c.load('microvideo'); assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=BUILT_IN.parent.parent)


_finite = st.floats(-1e6, 1e6, allow_nan=False)
_names = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=8).map(lambda tail: "x" + tail)


@st.composite
def _extra_features(draw: Any):
    """Valid features beside the keys and the label, each of kinds that need different keys."""
    entry = {"name": draw(_names), "role": draw(st.sampled_from(["user", "video", "context"]))}
    entry["source"] = draw(st.sampled_from(["users", "videos", "interactions"])) + "." + draw(_names)
    kind = draw(st.sampled_from([k.value for k in Kind]))
    entry["kind"] = kind
    if kind in ("id", "ids", "history", "text"):
        entry["vocabulary"] = draw(st.sampled_from(["user_id", "video_id"]))
    if kind in ("ids", "history", "text"):
        entry["max_length"] = draw(st.integers(1, 99))
    if kind == "vector":
        entry["dimension"] = draw(st.integers(1, 99))
    if kind == "number":
        entry["scale"] = draw(st.sampled_from(["none", "zscore", "log", "minmax"]))
        entry["default"] = draw(st.none() | _finite)
        entry["minimum"], entry["maximum"] = sorted((draw(_finite), draw(_finite)))
    if draw(st.booleans()):
        entry["description"] = draw(st.text(st.characters(blacklist_categories=("Cc", "Cs", "Zl", "Zp")), max_size=20))
        entry["optional"] = draw(st.booleans())
    return entry


@settings(max_examples=60)
@given(extra=st.lists(_extra_features(), max_size=5, unique_by=lambda entry: entry["name"]))
def test_every_valid_contract_survives_yaml_and_json(extra: list[dict[str, Any]]):
    content = yaml.safe_load(VALID)
    content["features"] += extra
    contract = parse(yaml.safe_dump(content, allow_unicode=True))
    assert contract == Contract.model_validate(content)
    assert Contract.from_json(contract.to_json()) == contract
    assert [f.name for f in contract.features] == [entry["name"] for entry in content["features"]]


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_bytes("name: m\u00efne".encode("latin-1"))
    with pytest.raises(ContractError, match=r"mine.yaml: expected UTF-8, .* at byte 7: save it as UTF-8"):
        load(str(tmp_path / "mine.yaml"))
