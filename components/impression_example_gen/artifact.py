"""What an artifact of examples tells of itself."""

from __future__ import annotations

from collections.abc import Mapping

from tfx import types
from tfx.components.util import examples_utils
from tfx.proto import example_gen_pb2
from tfx.types import artifact_utils

CATALOGUE = "catalogue"  # folder beside the splits of impressions, with an example a video


def describe(examples: types.Artifact, rows: Mapping[str, int]) -> None:
    """Put on an artifact of gzip TFRecords what later steps and people ask for, given the rows of each split."""
    examples.split_names = artifact_utils.encode_split_names(list(rows))
    examples.span = 0
    examples.version = 0
    examples_utils.set_payload_format(examples, example_gen_pb2.PayloadFormat.FORMAT_TF_EXAMPLE)
    examples_utils.set_file_format(examples, "tfrecords_gzip")
    for name, number in {"rows": sum(rows.values()), **{f"rows_{split}": n for split, n in rows.items()}}.items():
        examples.set_int_custom_property(name, number)
