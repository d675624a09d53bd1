"""Clips to content vectors, videos to topics, both to the ranker: one tiny world through all streams, and again."""

import glob
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from rich.console import Console
from tensorflow_serving.apis import prediction_log_pb2

from components.content_embedder.executor import read_summary
from components.feed_assembler.executor import assemble, served_stages
from components.importers.demo import import_demo
from components.impression_example_gen import asking
from components.serving_check.settings import ServingCheckSettings
from components.world import tables
from pipeline import cli, local_runner, recommend
from pipeline.config import RunConfig
from pipeline.errors import RunFailedError
from pipeline.feed_page import write_page
from pipeline.index import rebuild
from pipeline.models import EXPORTERS, FEED
from pipeline.report.gates import gates_of
from pipeline.report.page import render
from pipeline.report.records import load
from pipeline.report.topics import read_topics
from pipeline.runs import learned_of_videos, load_run
from serving.requests import to_examples, to_feed_example
from serving.topic_queues.queues import of_snapshot
from serving.topic_queues.store import Snapshot
from transform.contract import Contract
from transform.feed import FeedSettings
from transform.schema import parse_spec

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800)]  # five models are trained before the first test

WIDTH = 16  # of the contract's content vectors
SETTINGS = RunConfig.model_validate(
    {
        "name": "clips",
        "contract": "microvideo",
        "clips": {"frames": 4, "size": 16, "sound_steps": 2, "mels": 4, "key_frames": 8},
        "frames": {"encoder": "colours"},
        "feed": {"per_author": 1},
        "topics": {"topics": 12, "tag_width": 8, "walks": 2, "walk_length": 20, "cover_size": 16},
        "models": {
            "video_classifier": {
                "model": {"filters": [4], "sound_filters": [2], "title_width": 4, "width": WIDTH, "clusters": 2},
                "training": {"epochs": 1},
                "gates": [{"metric": "accuracy", "at_least": 0.0}],
            },
            "topic_representation": {
                "model": {"cover_filters": [4], "title_width": 8, "title_layers": 1, "experts": 2, "expert_units": 8},
                "training": {"epochs": 2, "batch_size": 16},
                "gates": [{"metric": "primary_hits", "at_least": 0.0}],
            },
            "topic_retrieval": {
                "model": {"embedding_width": 8, "width": 8, "deep": {"units": [8]}, "index": {"answers": 50}},
                "training": {"epochs": 2, "batch_size": 128},
                "gates": [{"metric": "recall_at_100", "at_least": 0.0}, {"metric": "index_recall", "at_least": 0.5}],
            },
            "jifr": {
                "model": {"width": 4, "visual_width": 4, "attention_units": 4},
                "training": {"epochs": 2, "batch_size": 128},
                "gates": [{"metric": "hits", "at_least": 0.0}, {"metric": "frame_hits_at_5", "at_least": 0.1}],
            },
            "ranker": {
                "model": {"architecture": "mhsa_crossing", "embedding_width": 4, "deep": None},
                "training": {"epochs": 1, "batch_size": 256},
                "gates": [{"metric": "auc", "at_least": 0.1}],
            },
        },
    }
)
CHAIN = ["Trainer", "ServingBaseline", "Evaluator", "Pusher"]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> str:
    out = tmp_path_factory.mktemp("world")
    import_demo(None, str(out), users=60, videos=90, interactions=2500, seed=2)
    return str(out)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("runs") / "clips"


def run(settings: RunConfig, world: str, folder: Path) -> local_runner.Run:
    return local_runner.run(settings, world, folder, Console(quiet=True), folder / "test.log")


@pytest.fixture(scope="module")
def pushed(world, folder) -> local_runner.Run:
    return run(SETTINGS, world, folder)


@pytest.mark.parametrize(
    ("model", "user"), [("video_classifier", "ContentEmbedder"), ("topic_representation", "TopicLearner")]
)
def test_what_describes_videos_is_judged_and_pushed_before_it_is_used(pushed, model, user):
    names = [step.name for step in pushed.steps]
    assert pushed.outcome == "pushed"
    order = [f"{step}.{model}" for step in CHAIN] + [user, "ImpressionExampleGen"]
    assert [name for name in names if name in order] == order
    assert [name for name in names if name.endswith(".ranker")] == [f"{step}.ranker" for step in CHAIN]


def test_every_clip_gives_a_vector_and_every_video_an_example(pushed):
    rows = {step.name: step.rows for step in pushed.steps}
    assert rows["ContentEmbedder"] == rows["ClipExampleGen"] > 70
    assert rows["VideoExampleGen"] == 90


def content_of(record: local_runner.Run) -> dict[str, dict]:
    parts = [pq.read_table(path) for path in glob.glob(f"{record.artifacts['ranker']['content']}/content/*.parquet")]
    return {row["video_id"]: row for row in pa.concat_tables(parts).to_pylist()}


def test_impressions_hold_the_vectors_of_their_video_and_zeros_where_it_has_none(pushed):
    content, contract = content_of(pushed), Contract.from_json(pushed.contract)
    files = glob.glob(f"{pushed.artifacts['ranker']['examples']}/Split-*/*")
    raw = next(iter(tf.data.TFRecordDataset(files, "GZIP").batch(5000)))
    parsed = tf.io.parse_example(raw, {**parse_spec(contract), "modalities": tf.io.FixedLenFeature([], tf.string)})
    seen = set()
    for index, video in enumerate(parsed["video_id"].numpy()):
        row = content.get(video.decode(), {})
        for name in ("visual_vector", "audio_vector", "text_vector"):
            expected = row.get(name) or np.zeros(WIDTH)
            np.testing.assert_array_equal(parsed[name][index], np.float32(expected))
        seen.add(parsed["modalities"][index].numpy().decode())
    assert seen == {"none", "visual+text", "visual+audio+text"}


def test_impressions_hold_what_their_video_looks_like(pushed):
    looks = tables.read_table(pushed.artifacts["ranker"]["frames"], "looks").to_pylist()
    of_video = {row["video_id"]: row["look_vector"] for row in looks}
    assert len(of_video) == 90
    files = glob.glob(f"{pushed.artifacts['ranker']['examples']}/Split-test/*")
    raw = next(iter(tf.data.TFRecordDataset(files, "GZIP").batch(5000)))
    spec = {name: parse_spec(Contract.from_json(pushed.contract))[name] for name in ("video_id", "look_vector")}
    parsed = tf.io.parse_example(raw, spec)
    for video, found in zip(parsed["video_id"].numpy(), parsed["look_vector"].numpy(), strict=True):
        np.testing.assert_array_equal(found, np.float32(of_video[video.decode()] or np.zeros(88)))
    assert any(found is None for found in of_video.values())


def test_impressions_hold_the_topics_of_their_video(pushed):
    assigned = tables.read_table(pushed.artifacts["ranker"]["topics"], "video_topics").to_pylist()
    topics = {row["video_id"]: row["topics"] for row in assigned}
    assert len(topics) == 90
    assert len({topic for found in topics.values() for topic in found}) > 5
    files = glob.glob(f"{pushed.artifacts['ranker']['examples']}/Split-*/*")
    raw = next(iter(tf.data.TFRecordDataset(files, "GZIP").batch(5000)))
    spec = {"topics": tf.io.RaggedFeature(tf.string), "video_id": tf.io.FixedLenFeature([], tf.string)}
    parsed = tf.io.parse_example(raw, spec)
    for video, found in zip(parsed["video_id"].numpy(), parsed["topics"].to_list(), strict=True):
        assert [topic.decode() for topic in found] == topics[video.decode()]


@pytest.fixture(scope="module")
def client(pushed):
    """Of a server of the feed that was pushed."""
    with recommend.served(asdict(pushed), target=None) as client:
        yield client


@pytest.fixture(scope="module")
def feed(pushed, client) -> recommend.Feed:
    return recommend.recommend(asdict(pushed), cli._busiest_users(pushed.world)[0], 10, client)


def test_the_feed_ranks_what_retrieval_and_queues_found_and_names_topics(pushed, feed):
    contract = Contract.from_json(pushed.contract)
    seen = set(asking.user_context(pushed.world, contract, feed.user_id, asking.clock(pushed.world)).seen)
    assert feed.candidates == min(50, 90 - len(seen))
    assert not {entry.video_id for entry in feed.entries} & seen
    assert [entry.score for entry in feed.entries] == sorted((e.score for e in feed.entries), reverse=True)
    names = recommend.topic_names(pushed.artifacts["ranker"]["topics"])
    rows = tables.read_table(pushed.artifacts["ranker"]["topics"], "video_topics").to_pylist()
    assigned = {row["video_id"]: [names[topic] for topic in row["topics"] or []] for row in rows}
    assert any(entry.topics for entry in feed.entries)
    assert all(entry.topics == assigned[entry.video_id] for entry in feed.entries)
    assert {entry.source for entry in feed.entries} <= {"topic", "queue"}
    videos = tables.read_table(pushed.world, "videos", ["video_id", "author_id"]).to_pylist()
    authors = {video["video_id"]: video["author_id"] for video in videos}
    assert len({authors[entry.video_id] for entry in feed.entries}) == len(feed.entries) == 10


@pytest.fixture(scope="module")
def plain(pushed, tmp_path_factory) -> Any:
    """The pushed models in one, by pure order of score: caps and kept shares are off."""
    settings = FeedSettings(length=50, per_author=None, per_topic=None, fresh_share=0, explore_share=0)
    contract, learned = Contract.from_json(pushed.contract), learned_of_videos(asdict(pushed))
    folder = str(tmp_path_factory.mktemp("plain") / "1")
    assemble(EXPORTERS[FEED], served_stages(pushed.models), pushed.world, contract, settings, learned).save(folder)
    return tf.saved_model.load(folder)


def test_one_call_is_the_three_pushed_models_called_one_after_another(pushed, plain):
    """Each by its own signature, the pairs given as the examples that training made of such a pair."""
    contract, learned = Contract.from_json(pushed.contract), learned_of_videos(asdict(pushed))
    at = asking.clock(pushed.world)
    stages = {stage: tf.saved_model.load(path).signatures for stage, path in served_stages(pushed.models).items()}
    for user in ("u0001", "u0002", "u0003"):  # the busiest have seen nearly all
        asked = asking.user_context(pushed.world, contract, user, at, learned)
        assert asked.clicked
        example, queue = to_feed_example(asked.features, contract, **asked.told), tf.zeros([1, 0], tf.string)
        answer = {n: v.numpy()[0] for n, v in plain.signatures["recommend"](examples=tf.constant([example])).items()}

        found = stages["retriever"]["retrieve"](
            examples=tf.constant([example]), exclude=tf.constant([asked.seen]), queue=queue
        )
        candidates = [video.decode() for video in found["video_ids"].numpy()[0] if video]
        rows = tf.constant(
            to_examples(asking.serving_rows(pushed.world, contract, user, candidates, at, learned), contract)
        )
        scores = stages["ranker"]["serving_default"](examples=rows)["score"].numpy()
        shown = {name: value.numpy() for name, value in stages["chooser"]["serving_default"](examples=rows).items()}

        ids = [video.decode() for video in answer["video_ids"] if video]
        answer = {name: value[: len(ids)] for name, value in answer.items() if np.ndim(value)}
        assert len(ids) == len(candidates) > 10
        assert set(ids) == set(candidates)
        assert np.std(scores) > 1e-3
        place = [candidates.index(video) for video in ids]
        np.testing.assert_allclose(answer["scores"], scores[place], rtol=0, atol=1e-5)
        np.testing.assert_allclose(scores[place], np.sort(scores)[::-1], rtol=0, atol=1e-5)  # so that ties may change
        assert (answer["frames"] >= 0).any()
        assert answer["frames"].tolist() == shown["frame"][place].tolist()
        assert answer["frame_paths"].tolist() == shown["path"][place].tolist()
        np.testing.assert_allclose(answer["frame_scores"], shown["frame_score"][place], rtol=0, atol=1e-5)


def test_the_feed_that_was_pushed_holds_the_queues_for_clients_without_a_store(pushed, client):
    contract, learned = Contract.from_json(pushed.contract), learned_of_videos(asdict(pushed))
    queues = of_snapshot(Snapshot.read(pushed.artifacts["feed"]["queues"]), SETTINGS.queues)
    users = sorted(tables.read_table(pushed.world, "users", ["user_id"])["user_id"].to_pylist())[:20]
    now = asking.clock(pushed.world)
    asked = [asking.user_context(pushed.world, contract, user, now, learned) for user in users]
    examples = [to_feed_example(one.features, contract, length=50, **one.told) for one in asked]
    answer = client.predict_tensors("feed", {"examples": np.array(examples, object)}, "recommend")
    queued = answer["video_ids"][answer["sources"] == b"queue"]
    assert len(queued) > 0
    assert {video.decode() for video in queued} <= {video for queue in queues.values() for video in queue}


def test_a_server_warms_every_signature_of_the_feed_up(pushed):
    folder = Path(pushed.models) / "feed" / pushed.served_version["feed"]
    records = tf.data.TFRecordDataset(str(folder / "assets.extra" / "tf_serving_warmup_requests"))
    asked = [prediction_log_pb2.PredictionLog.FromString(r).predict_log.request for r in records.as_numpy_iterator()]
    assert {request.model_spec.signature_name for request in asked} == {"serving_default", "recommend", "rank", "cover"}
    assert len(asked) == 4


def test_the_feed_is_tried_on_a_server_before_it_is_pushed(pushed):
    names = [step.name for step in pushed.steps]
    assert names[-3:] == ["FeedAssembler", "ServingCheck", "Pusher.feed"]
    assert pushed.served_version["feed"] == pushed.served_after["feed"] != ""
    tried = {gate.metric: gate for gate in gates_of("feed", pushed.artifacts["feed"])}
    assert tried["golden requests answered wrongly"].got == 0
    assert 0 < tried["p99 in milliseconds"].got < tried["p99 in milliseconds"].needed
    assert "Gates: feed" in render(load(Path(pushed.models).parent))


def test_recommend_prints_json_only_and_somebody_new_gets_what_is_popular(pushed, folder, client):
    command = [sys.executable, "-m", "pipeline.cli", "recommend", "--run", str(folder), "--user", "nobody", "--json"]
    command += ["--target", client.target]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ}, timeout=300, check=True)
    answer = json.loads(done.stdout)
    assert not answer["known_user"]
    assert "popular" in {entry["source"] for entry in answer["entries"]} <= {"popular", "explore"}
    assert len({entry["video_id"] for entry in answer["entries"]}) == 10
    assert done.stderr == ""


def test_every_video_with_media_is_shown_by_one_of_its_frames(pushed, feed):
    with_media = {r["video_id"] for r in tables.read_table(pushed.world, "videos").to_pylist() if r["media_path"]}
    assert {entry.video_id for entry in feed.entries if entry.cover} == {e.video_id for e in feed.entries} & with_media
    for cover in (entry.cover for entry in feed.entries if entry.cover):
        assert (Path(pushed.world) / cover.path).name.endswith(f"-{cover.frame:02d}.jpg")
        assert cover.at_seconds == pytest.approx((cover.frame + 0.5) / 8, abs=1 / 16)  # within its eighth of a second


def test_no_model_learns_from_a_liked_frame(pushed):
    found = {}
    for split in ("train", "valid", "test"):
        files = glob.glob(f"{pushed.artifacts['ranker']['examples']}/Split-{split}/*")
        raw = next(iter(tf.data.TFRecordDataset(files, "GZIP").batch(5000)))
        found[split] = tf.io.parse_example(raw, {"liked_frames": tf.io.RaggedFeature(tf.string)})["liked_frames"]
    assert [found[split].flat_values.shape[0] for split in ("train", "valid")] == [0, 0]
    assert found["test"].flat_values.shape[0] > 20
    transform = tf.io.gfile.glob(f"{pushed.models}/../artifacts/Transform*/transformed_examples/*/Split-*/*")
    learned = list(tf.data.TFRecordDataset(transform, "GZIP").take(100).as_numpy_iterator())
    assert len(learned) == 100
    assert not any(b"liked_frames" in record for record in learned)


def test_the_page_shows_both_feeds_and_both_covers_of_a_video(pushed, client, tmp_path):
    users = cli._busiest_users(pushed.world)
    feeds = [recommend.recommend(asdict(pushed), user, 5, client) for user in users]
    write_page(asdict(pushed), feeds, client, tmp_path / "feed.html")
    page = (tmp_path / "feed.html").read_text()
    shown = [entry for feed in feeds for entry in feed.entries]
    assert all(entry.title in unescape(page) for entry in shown)
    assert all(f"{entry.source}: {recommend.SOURCES[entry.source]}." in unescape(page) for entry in shown)
    videos = {entry.video_id for entry in shown}
    with_cover = sum(entry.cover is not None for entry in shown)
    in_pairs = 2 * len({entry.video_id for entry in shown if entry.cover})
    assert page.count("<img") == with_cover + in_pairs
    assert page.count('<div class="video') == len(videos)
    assert "http" not in page


def test_the_report_shows_the_topics_with_covers_and_click_rates(pushed):
    topics = read_topics(pushed.artifacts["ranker"])
    assert sum(topic.size for topic in topics) >= 90 - 3
    assert sum(bool(topic.covers) for topic in topics) > len(topics) / 2
    assert all(0 < topic.click_rate < 1 for topic in topics if topic.click_rate is not None)
    page = render(load(Path(pushed.models).parent))
    assert all(topic.name in unescape(page) for topic in topics)


def _clicks(world: str) -> list[tuple[str, str]]:
    events = tables.read_table(world, "interactions", ["user_id", "video_id", "clicked"]).to_pylist()
    return [(event["user_id"], event["video_id"]) for event in events if event["clicked"]]


def add_videos(pushed: local_runner.Run, to: Path) -> tuple[dict[str, Any], Path]:
    """The world with two more: "brand new", as a video that is given back has it, and "bare", of which nothing is told.

    Beside it lies a copy of the served models, whose folder is given back too.
    """
    for table in ("users", "interactions"):
        tables.write_table(str(to), table, tables.read_table(pushed.world, table))
    videos = tables.read_table(pushed.world, "videos")
    frames = tables.read_table(pushed.world, "key_frames").to_pylist()
    covers = {frame["video_id"]: frame["path"] for frame in frames if frame["frame_index"] == 0}
    known: dict[str, Any] = next(v for v in videos.to_pylist() if v["video_id"] in covers and v["title"] and v["tags"])
    shutil.copy(Path(pushed.world) / covers[known["video_id"]], to / "late.jpg")
    bare = {"title": None, "tags": None, "media_path": None}
    rows = [known | {"video_id": "brand new"}, known | bare | {"video_id": "bare"}]
    late = pa.Table.from_pylist(rows, videos.schema).append_column("cover_path", pa.array(["late.jpg", None]))
    tables.write_table(str(to), "videos", pa.concat_tables([videos, late], promote=True))
    for name in ("ranker", "topic_retrieval", "jifr", "feed"):
        shutil.copytree(f"{pushed.models}/{name}", to / "models" / name)
    return known, to / "models"


def test_nothing_is_pushed_where_the_feed_of_the_new_index_does_not_stand_its_trial(pushed, tmp_path):
    _, models = add_videos(pushed, tmp_path)
    before = sorted(models.rglob("*"))  # hidden ones too
    tight = {**pushed.config, "serving_check": {**pushed.config["serving_check"], "startup_seconds": 0.001}}
    with pytest.raises(RunFailedError, match=r"nothing is pushed: the new feed has seconds until it answers: None"):
        rebuild({**asdict(pushed), "models": str(models), "config": tight}, str(tmp_path))
    assert sorted(models.rglob("*")) == before


def test_a_video_that_came_later_is_retrieved_once_the_index_is_built_anew(pushed, tmp_path):
    (known, models), videos = add_videos(pushed, tmp_path), tables.read_table(pushed.world, "videos")
    done = rebuild({**asdict(pushed), "models": str(models)}, str(tmp_path))
    assert (done.later, done.with_topics) == (2, 1)
    rebuilt = done.versions
    assert set(rebuilt) == {"topic_retrieval", "jifr", "feed"}
    feed = tf.saved_model.load(str(models / "feed" / rebuilt["feed"]))
    pairs = {"examples": tf.constant([b""]), "video_ids": tf.constant([["brand new"]])}
    assert feed.signatures["cover"](**pairs)["frame_paths"].numpy() == [[b"late.jpg"]]
    assigned = tables.read_table(pushed.artifacts["ranker"]["topics"], "video_topics").to_pylist()
    topics = next(row["topics"] for row in assigned if row["video_id"] == known["video_id"])
    liking = next(user for user, video in _clicks(pushed.world) if video == known["video_id"])
    asked = asking.user_context(pushed.world, Contract.from_json(pushed.contract), liking, asking.clock(pushed.world))
    told = {**asked.told, "exclude": videos["video_id"].to_pylist(), "length": 2}
    example = to_feed_example(asked.features, Contract.from_json(pushed.contract), **told)
    shown = {name: v.numpy()[0] for name, v in feed.signatures["recommend"](examples=tf.constant([example])).items()}
    place = shown["video_ids"].tolist().index(b"brand new")  # it is in the index that the feed was made of
    assert shown["sources"][place] == b"topic"
    # Of the same cover, title and tags as a video of the run, so of the same topics, best first.
    assert [topic.decode() for topic in shown["topics"][place] if topic] == topics != []
    assert not any(shown["topics"][1 - place])
    assert sorted(path.name for path in models.iterdir()) == ["feed", "jifr", "ranker", "topic_retrieval"]
    texts = [part for part in feed.captured if isinstance(part, tf.Variable) and part.dtype == tf.string]
    assert any(b"brand new" in part.numpy().ravel() for part in texts)  # its tables know the video
    covers = tf.saved_model.load(str(models / "jifr" / rebuilt["jifr"])).signatures["raw"]
    ids = tf.constant(["brand new", *videos["video_id"].to_pylist()])
    history = tf.zeros([len(ids), 0], tf.string)
    answer = covers(user_id=tf.fill([len(ids)], "u0001"), watch_history=history, video_id=ids)
    assert answer["path"].numpy()[0] == b"late.jpg"
    media = [path is not None for path in videos["media_path"].to_pylist()]
    assert (answer["frame"].numpy()[1:] >= 0).tolist() == media  # the others are as they were
    found, built_in = [], []
    for version in (pushed.served_version["topic_retrieval"], rebuilt["topic_retrieval"]):
        model = tf.saved_model.load(str(models / "topic_retrieval" / version))
        inputs = {"exclude": tf.zeros([1, 0], tf.string), "queue": tf.constant([["brand new"]])}
        found.append(model.signatures["retrieve"](examples=tf.constant([b""]), **inputs)["video_ids"].numpy())
        built_in.append(bool((model.index.queues.numpy() >= 0).any()))
    assert [b"brand new" in ids for ids in found] == [False, True]
    assert built_in == [False, True]  # the queues as they stand now go into the model


def test_an_unchanged_run_comes_from_the_cache(pushed, world, folder):
    assert all(step.cached for step in run(SETTINGS, world, folder).steps)


def test_a_feed_that_its_check_refuses_is_not_pushed_and_the_run_leaves_with_code_3(pushed, world, folder, refused):
    """No server answers within a millisecond of its start; all else of the run comes from the cache."""
    before = sorted(path.name for path in (folder / "models" / "feed").iterdir())
    settings = SETTINGS.model_copy(update={"serving_check": ServingCheckSettings(startup_seconds=0.001)})
    screen = refused(settings, world, folder)
    assert "feed is refused by its gates: it is not pushed" in screen
    assert "feed was refused: nothing is pushed" in screen
    assert "seconds until it answers" in screen
    record = load_run(folder)
    assert (record["outcome"], record["served_version"]["feed"]) == ("refused", "")
    assert record["served_after"] == pushed.served_after
    assert sorted(path.name for path in (folder / "models" / "feed").iterdir()) == before


@pytest.mark.slow
def test_a_refused_retrieval_model_is_not_pushed(pushed, world, folder):
    model = SETTINGS.models["topic_retrieval"]
    gates = (model.gates[0].model_copy(update={"metric": "index_recall", "at_least": 1.1}),)
    models = {**SETTINGS.models, "topic_retrieval": model.model_copy(update={"gates": gates})}
    record = run(SETTINGS.model_copy(update={"models": models}), world, folder)
    assert record.outcome == "refused"
    assert record.served_version["topic_retrieval"] == ""
    before, after = ({n: v for n, v in r.served_after.items() if n != "feed"} for r in (pushed, record))
    assert after == before
    assert record.served_after["feed"] > pushed.served_after["feed"]  # made anew, of the same models
    assert [path.name for path in (folder / "models" / "topic_retrieval").iterdir()] == [
        pushed.served_version["topic_retrieval"]
    ]


@pytest.mark.slow
def test_a_refused_classifier_leaves_the_served_one_and_its_vectors(pushed, world, folder):
    classifier = SETTINGS.models["video_classifier"]
    gates = tuple(gate.model_copy(update={"at_least": 0.999}) for gate in classifier.gates)
    models = {**SETTINGS.models, "video_classifier": classifier.model_copy(update={"gates": gates})}
    record = run(SETTINGS.model_copy(update={"models": models}), world, folder)
    assert record.outcome == "refused"
    assert record.served_version["video_classifier"] == ""
    assert record.served_version["ranker"] != ""
    assert record.served_after["video_classifier"] == pushed.served_version["video_classifier"]
    counted = read_summary(record.artifacts["ranker"]["content"])
    assert counted == {"embedded": 0, "reused": len(content_of(pushed))}
    assert content_of(record) == content_of(pushed)


@pytest.mark.slow
def test_several_processes_of_beam_prepare_and_judge_as_one_does(pushed, world, tmp_path):
    """The whole run, TFX's own components with our functions and metrics in them too."""
    several = ("--runner=DirectRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
    record = run(SETTINGS.model_copy(update={"beam_args": several}), world, tmp_path / "clips")
    assert record.outcome == "pushed"
    assert [(step.name, step.rows) for step in record.steps] == [(step.name, step.rows) for step in pushed.steps]
    for model, artifacts in pushed.artifacts.items():
        judged, others = (gates_of(model, found) for found in (artifacts, record.artifacts[model]))
        assert [(gate.metric, gate.slice) for gate in others] == [(gate.metric, gate.slice) for gate in judged]
        assert all(gate.got is not None for gate in others)
    parts = "artifacts/Transform.impressions/transform_graph/*/**/vocabulary_*"
    before, now = (
        {path.name: path.read_bytes() for path in Path(r.models).parent.glob(parts)} for r in (pushed, record)
    )
    assert {"vocabulary_user_id", "vocabulary_video_id", "vocabulary_tag"} < set(before) == set(now)
    # Topics are learned of vectors, which are learned of videos in some order.
    assert [name for name in before if before[name] != now[name]] in ([], ["vocabulary_topic"])
