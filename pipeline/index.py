"""Takes new videos into served models: index and tables are built anew, what was learned stays as it was trained."""

from __future__ import annotations

import importlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from tfx.utils import io_utils
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from components.clip_example_gen.executor import title_column
from components.content_embedder import made_by
from components.feed_assembler import golden
from components.feed_assembler.executor import STAGES, assemble, served_stages, write_warm_up
from components.frame_embedder import encoders
from components.frame_embedder import executor as frame_embedder
from components.frame_embedder.settings import FrameSettings
from components.impression_example_gen import asking, features, impressions
from components.serving_baseline.executor import served_version
from components.serving_check import trial
from components.serving_check.settings import ServingCheckSettings
from components.topic_learner.assignment import VIDEO_TOPICS, LearnedTopics
from components.topic_learner.settings import TopicSettings
from components.video_example_gen.executor import examples
from components.world import tables
from pipeline import queue_store
from pipeline.errors import RunFailedError
from pipeline.models import COVER_CHOOSER, EXPORTERS, FEED, RETRIEVER
from pipeline.runs import artifact, learned_of_videos
from transform.clips import VIDEO_ID
from transform.contract import Contract, ContractError
from transform.feed import FeedSettings


@dataclass(frozen=True)
class Rebuilt:
    """What came of `rebuild`.

    Attributes:
        versions: That were pushed, by model.
        later: Videos that the run's topics were not learned from; 0 where it learned none.
        with_topics: How many of those have topics. The others have no title, cover or tag that topics could be told by.
    """

    versions: dict[str, str]
    later: int = 0
    with_topics: int = 0


def rebuild(run: Mapping[str, Any], world: str) -> Rebuilt:
    """Push versions of the served models of retrieval and of covers, and of the feed, that hold a world's videos.

    Content vectors and key frames are those that the run made. A video that came later is found by its title, tags,
    categories, author and topics, which are told by the representation, the tags and the centres of the run; it has a
    cover among its `frame_paths` or `cover_path`, until the next run. The topic queues go into the models as they stand
    now, for clients that ask without a store. Nothing is pushed before all of it was made and the feed has stood its
    trial.

    Args:
        run: A record of `pipeline.runs.load_run`.
        world: Folder of the tables.

    Raises:
        ContractError: None is served, the table of videos does not fit, or what the run learned of topics is gone.
        RunFailedError: The feed did not stand its trial.
    """
    names = [RETRIEVER, COVER_CHOOSER, *([FEED] if run["config"].get("feed") else [])]  # a feed is made of the others
    served = {name: version for name in names if (version := served_version(f"{run['models']}/{name}"))}
    if not served:
        raise ContractError(
            f"{run['models']}: expected a version of {RETRIEVER}, {COVER_CHOOSER} or {FEED}, got none: run a "
            "configuration with one of them until it is pushed"
        )
    with tempfile.TemporaryDirectory() as folder:
        learned, counted = learned_of_videos(run), (0, 0)
        if "topics" in learned and served.keys() & {RETRIEVER, FEED}:  # covers heed no topics
            learned["topics"], counted = _topics_of_all(run, world, learned["topics"], folder)
        return Rebuilt(_push(run, world, learned, served), *counted)


def _push(run: Mapping[str, Any], world: str, learned: dict[str, str], served: Mapping[str, str]) -> dict[str, str]:
    """The versions pushed, by model; none before all are made."""
    made: dict[str, str] = {}
    makers = _makers(run, world, learned, made)
    try:
        for name, version in served.items():
            made[name] = str(max(int(time.time()), int(version) + 1))
            _make(f"{run['models']}/{name}/{version}", _aside(run, name, made[name]), makers[name])
        for name, version in made.items():
            tf.io.gfile.rename(_aside(run, name, version), f"{run['models']}/{name}/{version}")
    finally:
        for path in filter(tf.io.gfile.exists, [_aside(run, *version) for version in made.items()]):
            io_utils.delete_dir(path)  # of what is not pushed
    return made


def _makers(
    run: Mapping[str, Any], world: str, learned: dict[str, str], made: Mapping[str, str]
) -> dict[str, Callable[[str, str], object]]:
    """By model, what makes a new version of a served one; `made` are those that wait to be pushed by then."""
    contract = Contract.from_json(run["contract"])
    return {
        RETRIEVER: lambda served, to: _exporter(RETRIEVER).rebuild(
            served, _videos(served, world, contract, learned), to, queues=queue_store.by_topic(run)
        ),
        COVER_CHOOSER: lambda served, to: _exporter(COVER_CHOOSER).rebuild(served, _frames(run, world), to),
        FEED: partial(_assemble, run, world, contract, learned, made),
    }


def _topics_of_all(run: Mapping[str, Any], world: str, topics: str, folder: str) -> tuple[str, tuple[int, int]]:
    """The folder of a table of topics with those of later videos too; how many these are, and have topics."""
    known = tables.read_table(topics, VIDEO_TOPICS)
    rows = tables.read_table(world, "videos").combine_chunks()
    impressions.refuse_unclear_ids(rows, "video_id", f"{world}, videos")
    rows = rows.filter(pc.invert(pc.is_in(rows["video_id"], value_set=known["video_id"].combine_chunks())))
    if not len(rows):
        return topics, (0, 0)
    settings = TopicSettings.model_validate(run["config"]["topics"])
    title = title_column(Contract.from_json(run["contract"]))
    records = examples(rows, world, title, settings.cover_size)
    later = LearnedTopics.read(topics, settings).assign_later(records, settings)
    tables.write_table(folder, VIDEO_TOPICS, pa.concat_tables([known, later], promote=True))
    found = pc.sum(pc.greater(pc.list_value_length(later["topics"]), 0)).as_py()
    return folder, (len(later), found)


def _refuse_other_content(model: str, learned: Mapping[str, str]) -> None:
    if made_by.differs(model, learned.get("content")):
        raise ContractError(
            f"{model}: expected a model that learned from the content vectors of this run, got one of an earlier "
            "classifier: run until a new one is pushed"
        )


def _exporter(name: str) -> Any:
    return importlib.import_module(EXPORTERS[name])


def _aside(run: Mapping[str, Any], name: str, version: str) -> str:
    """Where a version is made: not below the model, for a server would take half of it."""
    return f"{run['models']}/.{name}-{version}"


def _assemble(
    run: Mapping[str, Any],
    world: str,
    contract: Contract,
    learned: dict[str, str],
    made: Mapping[str, str],
    served: str,
    to: str,
) -> None:
    """The feed of what is served now and what is about to be; its own served version is not looked at."""
    stages, settings = served_stages(run["models"]), FeedSettings.model_validate(run["config"]["feed"])
    stages |= {stage: _aside(run, name, made[name]) for stage, name in STAGES.items() if name in made}
    if "ranker" not in stages:
        raise ContractError(f"{run['models']}: a feed is made of a ranker, and none is served: run until one is pushed")
    _refuse_other_content(stages["ranker"], learned)
    feed = assemble(EXPORTERS[FEED], stages, world, contract, settings, learned)  # queues are in the retriever
    feed.save(to)
    requests = [log.predict_log for log in golden.requests(feed, world, contract, asking.clock(world), learned)]
    write_warm_up(to, requests)
    bounds = ServingCheckSettings.model_validate(run["config"]["serving_check"])
    with tempfile.NamedTemporaryFile("r", errors="replace") as log:
        failed = [bound for bound in trial.try_out(to, requests, bounds, log.name) if not bound.passed]
        if failed:
            told = ", ".join(f"{b.metric}: {b.got} (at most {b.at_most:g})" for b in failed)
            logging.error("the server of the new feed printed:\n%s", log.read())
            raise RunFailedError(f"nothing is pushed: the new feed has {told}; what its server printed is in the log")


def _make(served: str, to: str, make: Callable[[str, str], object]) -> None:
    """A version with the requests that warm it up, which are those of the served one unless it has its own."""
    make(served, to)
    requests = f"{served}/assets.extra"
    if tf.io.gfile.exists(requests) and not tf.io.gfile.exists(f"{to}/assets.extra"):
        io_utils.copy_dir(requests, f"{to}/assets.extra")


def _videos(served: str, world: str, contract: Contract, learned: Mapping[str, str]) -> Iterator[bytes]:
    _refuse_other_content(served, learned)
    batch = features.examples(*asking.read_catalogue(world, contract, learned))
    yield from RecordBatchToExamplesEncoder().encode(batch)


def _frames(run: Mapping[str, Any], world: str) -> Iterator[bytes]:
    """Frame examples of the world's videos: those of the run, and new ones of the videos that it did not have."""
    settings = FrameSettings.model_validate(run["config"]["frames"])
    rows = frame_embedder.read_pictures(world, False, settings.encoder == "given").to_pylist()
    wanted = {row["video_id"] for row in rows}
    known = set()
    paths = sorted(tf.io.gfile.glob(f"{artifact(run, 'frames')}/{frame_embedder.FRAMES}/*"))
    for record in tf.data.TFRecordDataset(paths, "GZIP").as_numpy_iterator():
        video = tf.train.Example.FromString(record).features.feature[VIDEO_ID].bytes_list.value[0].decode()
        known.add(video)
        if video in wanted:
            yield record
    new = [row for row in rows if row["video_id"] not in known]
    yield from (found.example for found in frame_embedder.described(new, world, encoders.encoder(settings)))
