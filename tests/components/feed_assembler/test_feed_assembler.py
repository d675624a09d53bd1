"""The feed in one call: equal to its stages asked one after another, and arranged as its settings say."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import tensorflow as tf

from components.feed_assembler import golden
from components.feed_assembler.executor import assemble
from components.impression_example_gen import asking
from components.world import tables
from serving.requests import to_examples, to_feed_example
from trainer.feed_export import Feed, Stages, _in_turn
from trainer.layers.topic_index import Catalogue, IndexSettings, TopicIndex
from transform.contract import ContractError
from transform.feed import FeedSettings

NEWCOMER = "somebody new"
EXPORTER = "trainer.feed_export"
PLAIN = FeedSettings(length=6, per_author=None, per_topic=None, fresh_share=0)


@pytest.fixture(scope="module")
def plain(small, tmp_path_factory):
    return small.feed(tmp_path_factory.mktemp("plain") / "1")


@pytest.fixture(scope="module")
def users(small) -> list[str]:
    return [*sorted(tables.read_table(small.world, "users", ["user_id"])["user_id"].to_pylist())[:4], NEWCOMER]


@pytest.fixture(scope="module")
def videos(small) -> list[str]:
    return tables.read_table(small.world, "videos", ["video_id"])["video_id"].to_pylist()


def request(small, user: str, **more) -> bytes:
    asked = asking.user_context(small.world, small.contract, user, small.now, small.learned)
    return to_feed_example(asked.features, small.contract, **{**asked.told, **more})


def seen(small, user: str) -> set[str]:
    return set(asking.user_context(small.world, small.contract, user, small.now).seen)


def rows(small, user: str, videos: list[str]) -> tf.Tensor:
    """Examples of pairs as training sees them."""
    asked = asking.serving_rows(small.world, small.contract, user, videos, small.now, small.learned)
    return tf.constant(to_examples(asked, small.contract))


def ask(feed, signature: str, *examples: bytes, **more) -> dict[str, np.ndarray]:
    answer = feed.signatures[signature](examples=tf.constant(examples), **more)
    return {name: value.numpy() for name, value in answer.items()}


def test_a_video_is_ranked_by_the_very_features_that_training_saw(small, plain, users, videos):
    stage = tf.saved_model.load(small.stages["ranker"]).signatures["serving_default"]
    asked = [request(small, user) for user in users]
    answer = ask(plain, "rank", *asked, video_ids=tf.constant([videos] * len(users)))
    for index, user in enumerate(users):
        expected = {name: value.numpy() for name, value in stage(examples=rows(small, user, videos)).items()}
        assert len(set(expected["score"].tolist())) > 30
        np.testing.assert_allclose(answer["scores"][index], expected["score"], atol=1e-5)
        np.testing.assert_allclose(answer["modality_weights"][index], expected["modality_weights"], atol=1e-5)


@pytest.mark.parametrize("left_out", ["now", "categories", "profile"])
def test_a_request_that_lacks_what_lies_between_user_and_video_is_ranked_otherwise(
    small, plain, users, videos, left_out
):
    missing = {"now": small.now - 50_000, "categories": {}, "profile": []}[left_out]
    ids = tf.constant([videos])
    whole = ask(plain, "rank", request(small, users[0]), video_ids=ids)["scores"]
    lacking = ask(plain, "rank", request(small, users[0], **{left_out: missing}), video_ids=ids)["scores"]
    assert (np.abs(whole - lacking) > 1e-4).mean() > 0.3


def test_the_feed_is_its_stages_asked_one_after_another(small, plain, users):
    retriever, ranker, chooser = (
        tf.saved_model.load(small.stages[name]).signatures for name in ("retriever", "ranker", "chooser")
    )
    queue = ["v0003", "v0011"]
    answer = ask(plain, "recommend", *(request(small, user, queue=queue) for user in users[:-1]))
    for index, user in enumerate(users[:-1]):
        asked = asking.user_context(small.world, small.contract, user, small.now, small.learned)
        given = {
            name: tf.constant([asked.features.get(name, missing)])
            for name, missing in (
                ("user_id", ""),
                ("followed_ids", []),
                ("watch_history", []),
                ("user_events", 0.0),
                ("user_click_rate", math.nan),
                ("hour_of_day", ""),
            )
        }
        given = {n: tf.cast(v, tf.string) if n in ("followed_ids", "watch_history") else v for n, v in given.items()}
        found = retriever["raw"](exclude=tf.constant([asked.seen]), queue=tf.constant([queue]), **given)
        ids = [video.decode() for video in found["video_ids"].numpy()[0] if video]
        scores = ranker["serving_default"](examples=rows(small, user, ids))["score"].numpy()
        best = np.argsort(-scores, kind="stable")[:6]
        assert answer["video_ids"][index].tolist() == [ids[i].encode() for i in best]
        np.testing.assert_allclose(answer["scores"][index], scores[best], atol=1e-5)
        assert answer["candidates"][index] == len(ids)
        sources = dict(zip(found["video_ids"].numpy()[0], found["sources"].numpy()[0], strict=True))
        assert answer["sources"][index].tolist() == [sources[video] for video in answer["video_ids"][index]]
        shown = chooser["serving_default"](examples=rows(small, user, [ids[i] for i in best]))
        assert answer["frames"][index].tolist() == shown["frame"].numpy().tolist()
        assert answer["frame_paths"][index].tolist() == shown["path"].numpy().tolist()


def test_the_order_heeds_retrieval_by_its_weight(small, plain, users, tmp_path):
    """By the log of the ranker's score plus the weight times the score of retrieval, which falls by 1/20 each."""
    settings = PLAIN.model_copy(update={"length": 20, "retrieval_weight": 3.0})
    weighed = ask(small.feed(tmp_path / "1", settings), "recommend", request(small, users[0]))
    only_ranked = ask(plain, "recommend", request(small, users[0], length=20))
    nearest = tf.saved_model.load(small.stages["retriever"]).signatures["raw"]
    asked = asking.user_context(small.world, small.contract, users[0], small.now, small.learned)
    watched = tf.constant([asked.features["watch_history"]])
    nothing = {n: tf.zeros([1], s.dtype) for n, s in nearest.structured_input_signature[1].items() if s.shape.rank == 1}
    given = {"followed_ids": tf.constant([[""]]), "watch_history": watched, "queue": tf.zeros([1, 0], tf.string)}
    found = nearest(exclude=tf.constant([asked.seen]), **given, **nothing)["video_ids"].numpy()[0]
    score = dict(zip(only_ranked["video_ids"][0], only_ranked["scores"][0].astype(float), strict=True))
    by_both = {video: math.log(score[video]) + 3 * (1 - place / 20) for place, video in enumerate(found) if video}
    shown = [video for video in weighed["video_ids"][0] if video]
    assert shown == sorted(by_both, key=by_both.__getitem__, reverse=True)
    assert shown != [video for video in only_ranked["video_ids"][0] if video]
    assert [score[video] for video in shown] == pytest.approx(weighed["scores"][0][: len(shown)])


def test_somebody_new_is_ranked_alone_whatever_retrieval_counts_for(small, plain, users, tmp_path):
    feed = small.feed(tmp_path / "1", PLAIN.model_copy(update={"retrieval_weight": 3.0}))
    weighed = ask(feed, "recommend", request(small, users[0]), request(small, NEWCOMER))
    alone = ask(plain, "recommend", request(small, users[0]), request(small, NEWCOMER))
    assert weighed["video_ids"][1].tolist() == alone["video_ids"][1].tolist()
    assert weighed["video_ids"][0].tolist() != alone["video_ids"][0].tolist()


def test_without_retrieval_its_weight_changes_nothing(small, users, tmp_path):
    feeds = (
        small.feed(tmp_path / str(weight), PLAIN.model_copy(update={"retrieval_weight": weight}), ("retriever",))
        for weight in (0.0, 3.0)
    )
    first, second = (ask(feed, "recommend", request(small, users[0]))["video_ids"].tolist() for feed in feeds)
    assert first == second


def test_users_of_a_batch_are_answered_as_if_alone(small, plain, users):
    asked = [request(small, user, length=length) for user, length in zip(users, (1, 6, 3, 2, 5), strict=True)]
    together = ask(plain, "recommend", *asked)
    assert together["video_ids"].shape == (5, 6)
    for index, (example, length) in enumerate(zip(asked, (1, 6, 3, 2, 5), strict=True)):
        alone = ask(plain, "recommend", example)
        assert together["video_ids"][index].tolist() == [*alone["video_ids"][0].tolist(), *[b""] * (6 - length)]
        np.testing.assert_allclose(together["scores"][index][:length], alone["scores"][0], atol=1e-6)


def test_what_was_seen_or_excluded_is_not_shown(small, plain, users, videos):
    asked = asking.user_context(small.world, small.contract, users[0], small.now, small.learned)
    for user in (users[0], NEWCOMER):
        shown = ask(plain, "recommend", request(small, user, length=40, exclude=[*asked.seen, *videos[:10]]))
        names = {video.decode() for video in shown["video_ids"][0]} - {""}
        assert names
        assert not names & {*asked.seen, *videos[:10]}


def test_an_empty_request_is_answered_as_that_of_somebody_new(plain):
    answer = ask(plain, "recommend", b"")
    assert answer["video_ids"].shape == (1, 6)
    assert all(answer["video_ids"][0])


def test_somebody_who_saw_all_that_is_popular_gets_the_rest(small, videos, tmp_path):
    """Without a click there is no history; whatever was seen, the places are filled while there are videos left."""
    settings = FeedSettings(length=20, per_author=None, per_topic=None, fresh_share=0, explore_share=0.2)
    feed = small.feed(tmp_path / "1", settings)
    first = ask(feed, "recommend", request(small, NEWCOMER))["video_ids"][0]
    again = ask(feed, "recommend", request(small, NEWCOMER, exclude=[v.decode() for v in first]))["video_ids"][0]
    assert len(set(first)) == len(set(again)) == 20
    assert {*first, *again} == {video.encode() for video in videos}  # there are 40
    nothing = ask(feed, "recommend", request(small, NEWCOMER, exclude=videos))
    assert set(nothing["video_ids"][0]) == {b""}


def test_a_video_that_left_the_catalogue_is_not_shown_though_the_index_still_finds_it(small, users, videos, tmp_path):
    tables_of = {name: tables.read_table(small.world, name) for name in ("users", "videos", "interactions")}
    for name, table in tables_of.items():
        left = table.filter(pc.is_in(table["video_id"], pa.array(videos[5:]))) if name == "videos" else table
        tables.write_table(str(tmp_path / "world"), name, left)
    assemble(EXPORTER, small.stages, str(tmp_path / "world"), small.contract, PLAIN, small.learned).save(
        str(tmp_path / "1")
    )
    answer = ask(
        tf.saved_model.load(str(tmp_path / "1")),
        "recommend",
        *(request(small, u, exclude=[], length=40) for u in users),
    )
    assert not {video.encode() for video in videos[:5]} & set(answer["video_ids"].ravel())
    assert (answer["candidates"][:-1] < 20).all()


def test_a_stage_that_reads_less_is_asked_less_and_one_that_reads_more_is_refused(small, users, videos, plain):
    fewer = [f for f in small.contract.features if f.name != "duration_seconds"]
    older = small.contract.model_copy(update={"features": tuple(fewer)})
    with pytest.raises(ContractError, match="this model reads duration_seconds, which the contract has no more"):
        assemble(EXPORTER, small.stages, small.world, older, PLAIN, small.learned)


def test_a_world_without_categories_is_ranked_as_training_saw_it(small, users, videos, tmp_path):
    for name in ("users", "videos", "interactions"):
        table = tables.read_table(small.world, name)
        drop = [column for column in ("primary_category", "secondary_category") if column in table.column_names]
        tables.write_table(str(tmp_path / "world"), name, table.drop(drop))
    optional = {"primary_category", "secondary_category", "user_category_events", "user_category_click_rate"}
    features = [f.model_copy(update={"optional": f.name in optional or f.optional}) for f in small.contract.features]
    contract = small.contract.model_copy(update={"features": tuple(features)})
    world = str(tmp_path / "world")
    assemble(EXPORTER, small.stages, world, contract, PLAIN, small.learned).save(str(tmp_path / "1"))
    asked = asking.user_context(world, contract, users[0], small.now, small.learned)
    example = to_feed_example(
        asked.features, contract, now=asked.now, categories=asked.categories, profile=asked.profile
    )
    answer = ask(tf.saved_model.load(str(tmp_path / "1")), "rank", example, video_ids=tf.constant([videos]))
    expected = to_examples(asking.serving_rows(world, contract, users[0], videos, small.now, small.learned), contract)
    stage = tf.saved_model.load(small.stages["ranker"]).signatures["serving_default"]
    np.testing.assert_allclose(answer["scores"][0], stage(examples=tf.constant(expected))["score"], atol=1e-5)


def test_popular_videos_of_all_topics_come_in_turn():
    """Topics 0, 1 and 2; the first round is the best of each, most popular first: 4 of 0, 2 of 1, 0 of 2."""
    topic, positives = np.array([2, 0, 0, 1, 0, 1]), np.array([3, 9, 8, 5, 10, 1])
    assert _in_turn(topic, positives).tolist() == [4, 3, 0, 1, 5, 2]


def test_somebody_new_gets_what_is_popular_and_a_share_by_lot(small, tmp_path):
    settings = FeedSettings(length=10, per_author=None, per_topic=None, fresh_share=0, explore_share=0.2)
    feed = small.feed(tmp_path / "1", settings)
    answer = ask(feed, "recommend", request(small, NEWCOMER))
    by_source = {}
    for video, source in zip(answer["video_ids"][0], answer["sources"][0], strict=True):
        by_source.setdefault(source.decode(), []).append(video.decode())
    assert len(by_source["explore"]) >= 2  # a fifth of ten places
    assert len(set(answer["video_ids"][0])) == 10
    events = {}
    for event in tables.read_table(small.world, "interactions", ["video_id", "clicked"]).to_pylist():
        events[event["video_id"]] = events.get(event["video_id"], 0) + (event["clicked"] > 0.5)
    sixteenth = sorted(events.values(), reverse=True)[15]  # of 20 candidates a fifth is drawn
    assert all(events[video] >= sixteenth for video in by_source["popular"])
    assert not {*by_source["popular"]} & {*by_source["explore"]}


def test_lots_are_the_same_for_the_same_request_and_others_for_another_person_or_moment(small, tmp_path):
    settings = FeedSettings(length=20, per_author=None, per_topic=None, fresh_share=0, explore_share=0.5)
    feed = small.feed(tmp_path / "1", settings)

    def drawn(user: str, now: int) -> set[bytes]:
        answer = ask(feed, "recommend", request(small, user, now=now))
        return set(answer["video_ids"][0][answer["sources"][0] == b"explore"])

    first = drawn("new one", small.now)
    assert first == drawn("new one", small.now)
    assert first != drawn("new two", small.now)
    assert first != drawn("new one", small.now + 1)


def test_without_retrieval_all_videos_compete_and_without_a_chooser_none_has_a_cover(small, users, videos, tmp_path):
    feed = small.feed(tmp_path / "1", without=("retriever", "chooser"))
    asked = asking.user_context(small.world, small.contract, users[0], small.now, small.learned)
    answer = ask(feed, "recommend", request(small, users[0]))
    left = sorted(set(videos) - set(asked.seen))
    assert answer["candidates"].tolist() == [len(left)]
    scores = (
        tf.saved_model.load(small.stages["ranker"])
        .signatures["serving_default"](examples=rows(small, users[0], left))["score"]
        .numpy()
    )
    assert answer["video_ids"][0].tolist() == [left[i].encode() for i in np.argsort(-scores)[:6]]
    assert set(answer["sources"][0]) == {b"catalogue"}
    assert answer["frames"].tolist() == [[-1] * 6]
    assert set(answer["frame_paths"][0]) == {b""}


def test_no_author_has_more_places_than_the_settings_say_while_others_are_left(small, users, videos, tmp_path):
    feed = small.feed(tmp_path / "1", FeedSettings(length=6, per_author=1, per_topic=None), without=("retriever",))
    table = tables.read_table(small.world, "videos", ["video_id", "author_id"])
    author = dict(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    for user in users[:-1]:
        shown = [video.decode() for video in ask(feed, "recommend", request(small, user))["video_ids"][0]]
        left = set(videos) - seen(small, user)
        assert len({author[video] for video in shown}) == min(6, len({author[video] for video in left}))


def capped_by(small, topics: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Of each video its first topic, else its category, else itself, which is no cap."""
    table = tables.read_table(small.world, "videos", ["video_id", "primary_category"]).to_pylist()
    of = {row["video_id"]: ("category", row["primary_category"]) for row in table if row["primary_category"]}
    return {r["video_id"]: of.get(r["video_id"], ("itself", r["video_id"])) for r in table} | {
        video: ("topic", topic) for video, topic in topics.items()
    }


@pytest.mark.parametrize("learned", [False, True])
def test_without_a_topic_a_video_is_capped_by_its_category(small, users, videos, tmp_path, learned):
    """Topics were not learned, or of every second video only; they are called as categories are, and not mixed up."""
    names = sorted({name for kind, name in capped_by(small, {}).values() if kind == "category"})
    topics = {video: names[i % 2] for i, video in enumerate(videos[::2])} if learned else {}
    of = capped_by(small, topics)
    assert {kind for kind, _ in of.values()} == {"category", "itself", *(["topic"] if learned else [])}
    folders = dict(small.learned)
    if learned:
        rows = [{"video_id": video, "topics": [topic, "other"]} for video, topic in topics.items()]
        folders["topics"] = str(tmp_path)
        tables.write_table(str(tmp_path), "video_topics", pa.Table.from_pylist(rows))
    settings = FeedSettings(length=40, per_author=None, per_topic=1, fresh_share=0)
    feed = assemble(EXPORTER, {"ranker": small.stages["ranker"]}, small.world, small.contract, settings, folders)
    for user in users[:-1]:
        asked = tf.constant([request(small, user)])
        answer = {name: value.numpy()[0] for name, value in feed.answers["recommend"](asked).items()}
        shown = [video.decode() for video in answer["video_ids"] if video]
        best: dict[tuple[str, str], float] = {}
        for video, score in zip(shown, answer["scores"], strict=False):
            best[of[video]] = max(score, best.get(of[video], -math.inf))
        assert len(best) < len(shown)
        # The best of each group stand in front; whoever is set back stands behind them.
        assert list(answer["scores"][: len(best)]) == sorted(best.values(), reverse=True)
        assert [bool(row[0]) for row in answer["topics"][: len(shown)]] == [video in topics for video in shown]


def test_a_share_of_the_places_is_kept_for_fresh_videos(small, users, videos, tmp_path):
    """A third of the videos is an hour old, and half of the places are theirs."""
    table = tables.read_table(small.world, "videos")
    published = [small.now - (3600 if i % 3 == 0 else 30 * 86400) for i in range(len(table))]
    table = table.set_column(table.column_names.index("published_at"), "published_at", pa.array(published))
    for name in ("users", "interactions"):
        tables.write_table(str(tmp_path / "world"), name, tables.read_table(small.world, name))
    tables.write_table(str(tmp_path / "world"), "videos", table)
    settings = FeedSettings(length=6, per_author=None, per_topic=None, fresh_share=0.5, fresh_hours=2.0)
    stages = {name: path for name, path in small.stages.items() if name != "retriever"}
    assemble(EXPORTER, stages, str(tmp_path / "world"), small.contract, settings, small.learned).save(
        str(tmp_path / "1")
    )
    feed = tf.saved_model.load(str(tmp_path / "1"))
    fresh = {video.encode() for video in videos[::3]}
    for user in users:
        left = fresh - {video.encode() for video in seen(small, user)}
        assert len(fresh & set(ask(feed, "recommend", request(small, user))["video_ids"][0])) >= min(3, len(left))
    later = [request(small, user, now=small.now + 7200) for user in users]  # nothing is fresh any more
    assert min(len(fresh & set(row)) for row in ask(feed, "recommend", *later)["video_ids"]) < 3


def test_a_client_without_a_store_gets_candidates_of_the_queues_that_were_put_in(small, users, videos, tmp_path):
    """The index likes a video the less the later it comes; the queue is the other way round."""
    angles = np.linspace(0, 1.5, len(videos))
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    chosen = IndexSettings(answers=10, queue_share=0.3, queue_topics=1, probes=99)
    index = TopicIndex(Catalogue(videos, vectors, [["t"]] * len(videos)), chosen)
    stages = {**small.stages, "retriever": small.indexed_retriever(index, tmp_path / "retriever")}
    settings = PLAIN.model_copy(update={"length": 10})
    # Room is left for 9 videos of a queue: three of ten places, and twice as many that may have been watched.
    for queues, kept in ((None, []), ({"t": videos[::-1]}, videos[:-10:-1])):
        given = (EXPORTER, stages, small.world, small.contract, settings, small.learned, queues)
        assemble(*given).save(str(tmp_path / "feed"))
        feed = tf.saved_model.load(str(tmp_path / "feed"))
        for user in users[:-1]:
            answer = ask(feed, "recommend", request(small, user, exclude=[]))
            queued = answer["video_ids"][0][answer["sources"][0] == b"queue"]
            watched = asking.user_context(small.world, small.contract, user, small.now).features["watch_history"]
            assert sorted(queued) == sorted([video.encode() for video in kept if video not in watched][:3])


def test_new_counters_are_taken_over_without_training(small, videos, tmp_path):
    """After ten more clicks on one video its rows at serving are those of the new world."""
    user = "u0000"
    events = tables.read_table(small.world, "interactions")
    more = events.slice(0, 1).to_pylist()[0] | {"video_id": videos[5], "clicked": 1.0}
    added = [more | {"user_id": f"u{i:04d}", "at": small.now + i} for i in range(1, 11)]
    for name in ("users", "videos"):
        tables.write_table(str(tmp_path / "world"), name, tables.read_table(small.world, name))
    world = str(tmp_path / "world")
    tables.write_table(world, "interactions", pa.concat_tables([events, pa.Table.from_pylist(added, events.schema)]))
    assemble(EXPORTER, small.stages, world, small.contract, FeedSettings(), small.learned).save(str(tmp_path / "1"))
    now = asking.clock(world)
    assert now == small.now + 11
    asked = asking.user_context(world, small.contract, user, now, small.learned)
    example = to_feed_example(
        asked.features, small.contract, now=now, categories=asked.categories, profile=asked.profile
    )
    answer = ask(tf.saved_model.load(str(tmp_path / "1")), "rank", example, video_ids=tf.constant([videos]))
    examples = to_examples(asking.serving_rows(world, small.contract, user, videos, now, small.learned), small.contract)
    stage = tf.saved_model.load(small.stages["ranker"]).signatures["serving_default"]
    np.testing.assert_allclose(answer["scores"][0], stage(examples=tf.constant(examples))["score"], atol=1e-5)


def test_no_videos_are_refused(small):
    with pytest.raises(ContractError, match="expected videos, got none"):
        Feed(Stages(small.stages["ranker"]), [], small.contract, FeedSettings())


def test_golden_requests_cover_every_signature_and_hold_the_answers(small, plain, tmp_path):
    assembled = assemble(EXPORTER, small.stages, small.world, small.contract, FeedSettings(length=6), small.learned)
    assembled.save(str(tmp_path / "1"))
    golden.write(golden.requests(assembled, small.world, small.contract, small.now, small.learned), str(tmp_path))
    read = golden.read(str(tmp_path))
    assert [log.request.model_spec.signature_name for log in read] == ["rank", "cover", "recommend"] * 4
    feed = tf.saved_model.load(str(tmp_path / "1"))
    for log in read:
        inputs = {name: tf.constant(tf.make_ndarray(value)) for name, value in log.request.inputs.items()}
        answer = feed.signatures[log.request.model_spec.signature_name](**inputs)
        expected = {name: tf.make_ndarray(value) for name, value in log.response.outputs.items()}
        assert expected.keys() == answer.keys()
        for name, value in expected.items():
            if value.dtype == object:
                assert value.tolist() == answer[name].numpy().tolist()
            else:
                np.testing.assert_allclose(answer[name].numpy(), value, atol=1e-5)
