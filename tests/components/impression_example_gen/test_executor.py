"""The executor through a real Beam pipeline: files, counts, and equality with what a request would hold."""

import glob
import json
import math
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from tfx.dsl.components.base.base_beam_executor import BaseBeamExecutor
from tfx.types import standard_artifacts

from components.impression_example_gen import asking, executor, impressions
from components.impression_example_gen.component import ImpressionExampleGen
from components.impression_example_gen.executor import Executor, read_summary
from components.impression_example_gen.impressions import Splits
from components.world import tables
from transform.contract import ContractError, Feature, load

SPLITS = '{"by": "time", "train": 0.6, "valid": 0.2, "test": 0.2}'
# Twenty events at 1, 1000, ..., 19000.
ROWS = [(("ann", "bob", "eve")[i % 3], "abcd"[i % 4], i * 1000 or 1, 5.0 if i % 2 else 1.0) for i in range(20)]
FAULTY = [
    ("ann", "a", 500, 3.0),
    ("bob", "b", 500, 3.0),
    ("ann", "gone", 500, 5.0),
    ("gone", "a", 500, 5.0),
    ("ann", "a", 600, math.nan),
]


def _execute(world, folder: Path, contract, splits=SPLITS, rows_per_partition=100_000):
    examples = standard_artifacts.Examples()
    examples.uri = str(folder)
    context = BaseBeamExecutor.Context(tmp_dir=str(folder), unique_id="1")
    properties = {"world": world, "contract_json": contract.to_json(), "splits_json": splits}
    Executor(context).Do({}, {"examples": [examples]}, {**properties, "rows_per_partition": rows_per_partition})
    return examples


def _decoded(path: Path, contract, decode) -> list[dict]:
    """The examples of a file in their order; the order of features within an example is the encoder's affair."""
    return [decode(record.numpy(), contract) for record in tf.data.TFRecordDataset([str(path)], "GZIP")]


def _records(examples, split: str) -> list[bytes]:
    paths = sorted(glob.glob(f"{examples.uri}/Split-{split}/*"))
    return [record.numpy() for record in tf.data.TFRecordDataset(paths, "GZIP")]


@pytest.fixture(scope="module")
def done(make_world, contract, tmp_path_factory):
    """A world with some faults, and its examples in seven partitions."""
    world = make_world(tmp_path_factory.mktemp("world"), ROWS + FAULTY)
    return world, _execute(world, tmp_path_factory.mktemp("examples"), contract, rows_per_partition=4)


def test_splits_hold_what_their_time_says(done, contract, decode):
    # 25 events: 15 of them (60%) lie before 10000, 20 (80%) before 15000.
    _, examples = done
    expected = {"train": ROWS[:10], "valid": ROWS[10:15], "test": ROWS[15:]}
    for split, rows in expected.items():
        found = sorted(
            (row["user_id"], row["video_id"], row["liked"])
            for row in (decode(e, contract) for e in _records(examples, split))
        )
        assert found == sorted((user, video, float(rating > 3)) for user, video, _, rating in rows)


def test_summary_and_properties_account_for_every_interaction(done):
    _, examples = done
    summary = read_summary(examples.uri)
    assert summary["interactions"] == 25
    assert summary["rows"] == {"train": 10, "valid": 5, "test": 5}
    assert summary["neutral"] == 2
    assert summary["rejected"] == {"missing label": 1, "unknown video": 1, "unknown user": 1}
    assert (summary["splits"]["valid_from"], summary["splits"]["test_from"]) == (9001, 14001)
    assert json.loads(examples.split_names) == ["train", "valid", "test"]
    counted = {name: examples.get_int_custom_property(name) for name in ("rows", "rows_train", "neutral", "rejected")}
    assert counted == {"rows": 20, "rows_train": 10, "neutral": 2, "rejected": 3}
    assert examples.get_string_custom_property("payload_format") == "FORMAT_TF_EXAMPLE"
    assert examples.get_string_custom_property("file_format") == "tfrecords_gzip"


def test_rejected_rows_are_kept_with_their_reason_outside_the_splits(done):
    _, examples = done
    rows = [row for path in glob.glob(f"{examples.uri}/rejected-*.parquet") for row in pq.read_table(path).to_pylist()]
    assert sorted((row["reason"], row["user_id"], row["video_id"], row["at"]) for row in rows) == [
        ("missing label", "ann", "a", 600),
        ("unknown user", "gone", "a", 500),
        ("unknown video", "ann", "gone", 500),
    ]
    files = {path.name for path in Path(examples.uri).glob("Split-*/*")}
    assert files
    assert all(name.startswith("data_tfrecord-") and name.endswith("-of-00007.gz") for name in files)
    assert not (Path(examples.uri) / ".partial").exists()


def test_a_request_of_the_same_instant_holds_the_same_features(done, contract, decode):
    world, examples = done
    times = {(user, video): [] for user, video, _, _ in ROWS}
    for user, video, at, _ in ROWS:
        times[user, video].append(at)
    inputs = {feature.name for feature in contract.inputs}
    seen = 0
    for split in ("train", "valid", "test"):
        for example in (decode(record, contract) for record in _records(examples, split)):
            expected = {name: value for name, value in example.items() if name in inputs}
            user, video = example["user_id"], example["video_id"]
            asked = [asking.serving_rows(world, contract, user, [video], at)[0] for at in times[user, video]]
            assert expected in asked
            seen += 1
    assert seen == len(ROWS)


def test_one_partition_yields_the_same_examples_as_seven(done, contract, decode, tmp_path):
    world, seven = done
    one = _execute(world, tmp_path, contract)
    assert len(glob.glob(f"{one.uri}/Split-train/*")) == 1
    for split in ("train", "valid", "test"):
        of_one, of_seven = ([repr(decode(r, contract)) for r in _records(made, split)] for made in (one, seven))
        assert sorted(of_one) == sorted(of_seven)


def test_running_again_into_the_same_folder_leaves_the_same_files(done, contract, decode, tmp_path):
    world, first = done
    shutil.copytree(first.uri, tmp_path / "again")
    again = _execute(world, tmp_path / "again", contract, rows_per_partition=4)
    files = [sorted(Path(e.uri).glob("Split-*/*")) for e in (first, again)]
    assert [p.name for p in files[0]] == [p.name for p in files[1]]
    for before, after in zip(*files, strict=True):
        assert _decoded(before, contract, decode) == _decoded(after, contract, decode)


def test_a_file_is_sorted_neither_by_time_nor_by_user(contract, make_events):
    prepared = impressions.prepare(make_events(ROWS), contract, Splits("hash", 0.8, 0.1, 0.1))
    shuffled = impressions.shuffle(prepared).to_pylist()
    for key in ("at", "user_id", "video_id"):
        values = [row[key] for row in shuffled]
        assert values != sorted(values)
    assert shuffled == impressions.shuffle(prepared.take(list(reversed(range(20))))).to_pylist()


def test_a_csv_world_and_missing_optional_columns_are_read(contract, decode, tmp_path):
    (tmp_path / "users.csv").write_text("user_id\nann\nbob\neve\n")
    (tmp_path / "videos.csv").write_text(
        "video_id,title,tags,duration_seconds,published_at,primary_category\n"
        + "".join(f"{v},Title {v},x|y,9,0,pets\n" for v in "abcd")
    )
    lines = "".join(f"{user},{video},{at},{rating}\n" for user, video, at, rating in ROWS)
    (tmp_path / "interactions.csv").write_text(f"user_id,video_id,at,rating\n{lines}")
    examples = _execute(str(tmp_path), tmp_path / "out", contract)
    rows = [decode(record, contract) for record in _records(examples, "train")]
    assert len(rows) == 12
    assert all(row["tags"] == ["x", "y"] and "country" not in row and "look" not in row for row in rows)


def test_a_hash_split_needs_no_times_and_has_no_cuts(done, contract, tmp_path):
    world, _ = done
    examples = _execute(world, tmp_path, contract, splits=SPLITS.replace("time", "hash"))
    summary = read_summary(examples.uri)
    assert sum(summary["rows"].values()) == 20
    assert summary["splits"] == {"by": "hash", "train": 0.6, "valid": 0.2, "test": 0.2}


def test_a_split_without_rows_is_an_error_with_a_remedy(make_world, contract, tmp_path):
    world = make_world(tmp_path / "world", ROWS[:2])
    with pytest.raises(ContractError, match=r"got none in valid.* bring more interactions"):
        _execute(world, tmp_path / "out", contract)


def test_a_missing_column_is_named_before_any_worker_starts(done, tmp_path):
    world, _ = done
    with pytest.raises(ContractError, match=r"interactions\.parquet: the column 'clicked' is missing"):
        _execute(world, tmp_path, load("microvideo"))


def test_an_error_of_the_user_that_a_worker_meets_stays_one(make_world, contract, tmp_path):
    videos = pa.table(
        {
            "video_id": list("abcd"),
            "title": list("abcd"),
            "tags": [["x"]] * 4,
            "duration_seconds": [1.0] * 4,
            "published_at": [0] * 4,
            "primary_category": ["x"] * 4,
            "look": [[1.0, 2.0, 3.0]] * 4,
        }
    )
    world = make_world(tmp_path / "world", ROWS, videos=videos)
    with pytest.raises(
        ContractError, match=r"^feature 'look'.* expected vectors of 2 values, got one of 3: .*mend the column$"
    ):
        _execute(world, tmp_path / "out", contract)


def test_a_partition_of_orphans_fits_the_others(make_world, contract, tmp_path):
    # About one interaction a partition: most partitions hold one video, and that of "gone" has no row of videos.
    world = make_world(tmp_path / "world", [*ROWS, ("ann", "gone", 500, 5.0), ("gone", "a", 500, 5.0)])
    summary = read_summary(_execute(world, tmp_path / "out", contract, rows_per_partition=1).uri)
    assert sum(summary["rows"].values()) == len(ROWS)
    assert summary["rejected"] == {"unknown video": 1, "unknown user": 1}


def test_times_and_labels_out_of_range_are_rejected_and_do_not_move_the_cuts(done, make_world, contract, tmp_path):
    later = 90_000_000_000
    wrong = [
        ("ann", "a", 1_600_000_000_000, 5.0),
        ("ann", "b", -1, 5.0),
        ("bob", "c", 700, 77.0),
        ("bob", "a", later, 5.0),
    ]
    world = make_world(tmp_path / "world", [*ROWS, *FAULTY[:4], *wrong])
    examples = _execute(world, tmp_path / "out", contract)
    summary = read_summary(examples.uri)
    reasons = {"label out of range": 1, "time in milliseconds": 1, "time in the future": 1, "time not positive": 1}
    assert summary["rejected"] == {**reasons, "unknown video": 1, "unknown user": 1}
    assert summary["splits"] == read_summary(done[1].uri)["splits"]  # of as many plausible times
    paths = glob.glob(f"{examples.uri}/rejected-*.parquet")
    kept = {row["reason"]: row["at"] for path in paths for row in pq.read_table(path).to_pylist()}
    assert {reason: kept[reason] for reason in reasons} == dict(
        zip(reasons, (700, 1_600_000_000_000, later, -1), strict=True)
    )


@pytest.mark.parametrize(("table", "key"), [("videos", "video_id"), ("users", "user_id")])
def test_a_key_that_is_there_twice_is_refused(make_world, entities, contract, tmp_path, table, key):
    given = dict(entities)
    given[table] = pa.concat_tables([given[table], given[table].slice(1, 2)])
    world = make_world(tmp_path / "world", ROWS, **given)
    first = given[table][key][1].as_py()
    with pytest.raises(
        ContractError, match=rf"^{table}: expected one row for each {key}, .* '{first}': `shortlist check`"
    ):
        _execute(world, tmp_path / "out", contract)


def test_only_headers_are_read_before_the_workers_start(done, contract, monkeypatch):
    world, _ = done
    shards = tables.shards(world, "interactions")
    properties = {"contract_json": contract.to_json(), "splits_json": SPLITS}
    monkeypatch.setattr(tables, "read_shard", None)
    folders = dict.fromkeys(("interactions", "videos", "users"), world)
    job = executor._job(folders, shards, properties, "out")
    assert set(job.columns["users"]) == {"user_id", "country"}


def test_the_component_declares_examples_and_takes_strings():
    node = ImpressionExampleGen(world="w", world_fingerprint="f", contract_json="{}", splits_json=SPLITS)
    assert node.outputs["examples"].type is standard_artifacts.Examples
    assert node.exec_properties == {
        "world": "w",
        "world_fingerprint": "f",
        "contract_json": "{}",
        "splits_json": SPLITS,
        "rows_per_partition": 100_000,
    }


def test_liked_frames_are_in_examples_of_the_test_split_alone(make_world, contract, tmp_path):
    declared = Feature(name="frames", kind="ids", role="feedback", max_length=4, source="derived.liked_frames")
    with_feedback = contract.model_copy(update={"features": (*contract.features, declared)})
    world = make_world(tmp_path / "world", ROWS)
    pairs = {(user, video) for user, video, _, _ in ROWS}
    rows = [(user, video, frame, liked) for user, video in pairs for frame, liked in ((2, 1.0), (0, 1.0), (1, 0.0))]
    names = ("user_id", "video_id", "frame_index", "liked")
    feedback = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    tables.write_table(world, "frame_feedback", feedback)
    (tmp_path / "examples").mkdir()
    examples = _execute(world, tmp_path / "examples", with_feedback, rows_per_partition=4)
    liked = {
        split: {tuple(tf.train.Example.FromString(e).features.feature["frames"].bytes_list.value) for e in records}
        for split, records in ((split, _records(examples, split)) for split in ("train", "valid", "test"))
    }
    assert liked == {"train": {()}, "valid": {()}, "test": {(b"0", b"2")}}
