"""Takes new videos into the served retrieval model: its index is built anew, its towers stay as they were trained."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import tensorflow as tf
from tfx.utils import io_utils
from tfx_bsl.coders.example_coder import RecordBatchToExamplesEncoder

from components.impression_example_gen import features, impressions
from components.serving_baseline.executor import served_version
from pipeline.models import RETRIEVER
from pipeline.runs import learned_of_videos
from transform.contract import Contract, ContractError

EXPORTER = "trainer.retrieval_export"  # by name: this package imports no trainer


def rebuild(run: Mapping[str, Any], world: str) -> str:
    """Push a version of the served retrieval model whose index holds the videos that a world has now.

    Topics and content vectors are those that the run made: a video that came later is found by its title, tags,
    categories and author until the next run.

    Args:
        run: A record of `pipeline.runs.load_run`.
        world: Folder of the tables.

    Returns:
        The version.

    Raises:
        ContractError: No retrieval model is served, or the table of videos does not fit.
    """
    destination = f"{run['models']}/{RETRIEVER}"
    served = served_version(destination)
    if not served:
        raise ContractError(
            f"{destination}: expected a version of the retrieval model, got none: run a configuration with "
            f"{RETRIEVER!r} until it is pushed"
        )
    contract = Contract.from_json(run["contract"])
    version = str(max(int(time.time()), int(served) + 1))
    partial = f"{run['models']}/.{RETRIEVER}-{version}"  # not below the model: a server would take half of it
    videos = _examples(world, contract, learned_of_videos(run))
    importlib.import_module(EXPORTER).rebuild(f"{destination}/{served}", videos, partial)
    requests = f"{destination}/{served}/assets.extra"  # those that warm a model up
    if tf.io.gfile.exists(requests):
        io_utils.copy_dir(requests, f"{partial}/assets.extra")
    tf.io.gfile.rename(partial, f"{destination}/{version}")
    return version


def _examples(world: str, contract: Contract, learned: Mapping[str, str]) -> Iterator[bytes]:
    batch = features.examples(*impressions.read_catalogue(world, contract, learned))
    yield from RecordBatchToExamplesEncoder().encode(batch)
