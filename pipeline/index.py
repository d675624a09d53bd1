"""Takes new videos into served models: index and tables are built anew, what was learned stays as it was trained."""

from __future__ import annotations

import importlib
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import tensorflow as tf
from tfx.utils import io_utils
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from components.content_embedder import made_by
from components.feed_assembler import golden
from components.feed_assembler.executor import STAGES, assemble, served_stages, write_warm_up
from components.frame_embedder import encoders
from components.frame_embedder import executor as frame_embedder
from components.frame_embedder.settings import FrameSettings
from components.impression_example_gen import asking, features
from components.serving_baseline.executor import served_version
from components.serving_check import trial
from components.serving_check.settings import ServingCheckSettings
from pipeline import queue_store
from pipeline.errors import RunFailedError
from pipeline.models import COVER_CHOOSER, EXPORTERS, FEED, RETRIEVER
from pipeline.runs import artifact, learned_of_videos
from transform.clips import VIDEO_ID
from transform.contract import Contract, ContractError
from transform.feed import FeedSettings


def rebuild(run: Mapping[str, Any], world: str) -> dict[str, str]:
    """Push versions of the served models of retrieval and of covers, and of the feed, that hold a world's videos.

    Topics, content vectors and key frames are those that the run made. A video that came later is found by its title,
    tags, categories and author, and has a cover among its `frame_paths` or `cover_path`, until the next run. The topic
    queues go into the model as they stand now, for clients that ask without a store. Nothing is pushed before all of it
    was made and the feed has stood its trial.

    Args:
        run: A record of `pipeline.runs.load_run`.
        world: Folder of the tables.

    Returns:
        The version pushed, by model.

    Raises:
        ContractError: None is served, or the table of videos does not fit.
        RunFailedError: The feed did not stand its trial.
    """
    contract, queues = Contract.from_json(run["contract"]), queue_store.by_topic(run)
    made: dict[str, str] = {}  # by model, the version that waits to be pushed
    makers: dict[str, Callable[[str, str], object]] = {
        RETRIEVER: lambda served, to: _exporter(RETRIEVER).rebuild(
            served, _videos(run, world, contract), to, queues=queues
        ),
        COVER_CHOOSER: lambda served, to: _exporter(COVER_CHOOSER).rebuild(served, _frames(run, world), to),
    }
    if run["config"].get("feed"):
        makers[FEED] = partial(_assemble, run, world, contract, queues, made)  # last: it is made of the others
    served = {name: served_version(f"{run['models']}/{name}") for name in makers}
    if not any(served.values()):
        raise ContractError(
            f"{run['models']}: expected a version of {RETRIEVER}, {COVER_CHOOSER} or {FEED}, got none: run a "
            "configuration with one of them until it is pushed"
        )
    try:
        for name in (name for name in makers if served[name]):
            made[name] = str(max(int(time.time()), int(served[name]) + 1))
            _make(f"{run['models']}/{name}/{served[name]}", _aside(run, name, made[name]), makers[name])
        for name, version in made.items():
            tf.io.gfile.rename(_aside(run, name, version), f"{run['models']}/{name}/{version}")
    finally:
        for path in filter(tf.io.gfile.exists, [_aside(run, *version) for version in made.items()]):
            io_utils.delete_dir(path)  # of what is not pushed
    return made


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
    queues: Mapping[str, Sequence[str]],
    made: Mapping[str, str],
    served: str,
    to: str,
) -> None:
    """The feed of what is served now and what is about to be; its own served version is not looked at."""
    stages, settings = served_stages(run["models"]), FeedSettings.model_validate(run["config"]["feed"])
    stages |= {stage: _aside(run, name, made[name]) for stage, name in STAGES.items() if name in made}
    learned = learned_of_videos(run)
    if "ranker" not in stages:
        raise ContractError(f"{run['models']}: a feed is made of a ranker, and none is served: run until one is pushed")
    _refuse_other_content(stages["ranker"], learned)
    feed = assemble(EXPORTERS[FEED], stages, world, contract, settings, learned, queues)
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


def _videos(run: Mapping[str, Any], world: str, contract: Contract) -> Iterator[bytes]:
    learned = learned_of_videos(run)
    destination = f"{run['models']}/{RETRIEVER}"
    _refuse_other_content(f"{destination}/{served_version(destination)}", learned)
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
