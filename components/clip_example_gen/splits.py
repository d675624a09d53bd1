"""Which clips train and which judge: whole groups, by hash or by time. N videos."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from components.impression_example_gen.impressions import Splits
from components.impression_example_gen.partitions import single_array, stable_hash
from transform.contract import ContractError


def assign(videos: pa.Table, splits: Splits, where: str) -> npt.NDArray[np.int8]:
    """The split of each video; those of one group (`group_id`, the video itself where it has none) share one.

    Args:
        videos: Canonical; with `published_at` to split by time.
        splits: "hash": by the group's hash, whatever else the world holds; "time": by the group's first `published_at`.
        where: Names the world in errors.

    Returns:
        int8 [N], index into SPLITS.

    Raises:
        ContractError: By time, and a video has none.
    """
    groups = single_array(videos["video_id"])
    if "group_id" in videos.column_names:
        given = single_array(videos["group_id"])
        groups = pc.if_else(pc.equal(pc.fill_null(given, ""), ""), groups, pc.binary_join_element_wise("g", given, ""))
    if splits.by == "hash":
        nothing = np.zeros(len(videos), np.int64)
        return splits.assign(stable_hash(groups), nothing, nothing)
    if "published_at" not in videos.column_names or videos["published_at"].null_count:
        raise ContractError(
            f"{where}: splits by time need published_at of every video, got none in some: fill it, or split by hash"
        )
    codes = groups.dictionary_encode().indices.to_numpy()
    times = videos["published_at"].to_numpy()
    first = np.full(codes.max(initial=0) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, codes, times)
    train, valid = np.quantile(first, [splits.train, splits.train + splits.valid], method="higher")
    return replace(splits, before=(int(train), int(valid))).assign(codes, codes, first[codes])
