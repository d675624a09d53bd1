"""What it costs to give only frequent users and videos a row of their own: MovieLens-1M, protocol B of `ctr.py`.

    python benchmarks/vocabulary.py [--shares 1 0.5 0.25 0.1] [--seeds 1 2 3] [--only-missing]

Of users and of videos the share with the most events (of all rows, as protocol B has it) keeps its rows; the others
share `oov_buckets` rows by hash, one or a tenth as many as there are rows, as the contract's `max_size` and
`oov_buckets` have it. Measured are the share of test rows whose user, or whose video, has no row of its own, and AUC
and logloss of `dcn_v2_regularised` with the settings that `ctr.py` gives it, at the epoch with the best validation AUC.
Results go to `results/vocabulary.{json,md}`.
"""

import argparse
import json
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from ctr import DATA, measured
from protocols import movielens, table

HERE = Path(__file__).parent
MODEL, IDS = "dcn_v2_regularised", ("user_id", "video_id")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", nargs="+", type=float, default=[1, 0.5, 0.25, 0.1], help="of ids with a row")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--only-missing", action="store_true", help="skip what the results hold already")
    parser.add_argument("--source", type=Path, default=DATA / "movielens-1m", help="folder of the MovieLens-1M files")
    parser.add_argument("--work", type=Path, default=HERE.parent / "runs" / "ctr", help="folder for the encoded rows")
    options = parser.parse_args()
    results = table.Results(Path(os.environ.get("RESULTS", HERE / "results")) / "vocabulary.json")
    with np.load(movielens.prepare("B", options.source, options.work)) as file:
        arrays = {key: file[key] for key in file.files}
    for share, hashed in ((share, hashed) for share in options.shares for hashed in (False, True)):
        if share == 1 and hashed:
            continue  # nobody is left to be hashed
        for seed in options.seeds:
            key = {"protocol": f"{share:g}", "side": "hashed" if hashed else "one row", "model": MODEL, "seed": seed}
            if not (options.only_missing and results.has(*key.values())):
                capped, about = _capped(arrays, share, hashed)
                results.add({**key, **about, **measured("B", MODEL, seed, capped, epochs=25)})
                _write(results, results.path.with_suffix(".md"))


def _capped(
    arrays: dict[str, np.ndarray], share: float, hashed: bool
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
    """The rows with fewer ids; by id, how many rows there are and which share of test rows has none of its own.

    Ids are numbered from 1 by how many events they have, and V + 1 stands for those that nobody knows.
    """
    about, changed = json.loads(str(arrays["about"])), dict(arrays)
    sizes, without = about["vocabulary_sizes"], {}
    for name in IDS:
        kept = int((sizes[name] - 2) * share)
        buckets = max(kept // 10, 1) if hashed else 1
        for part in movielens.SPLITS:
            ids = arrays[f"{part}/{name}"]
            bucket = kept + 1 + (ids.astype(np.int64) * 2654435761 % 2**32) % buckets  # Knuth's multiplicative hash
            changed[f"{part}/{name}"] = np.where(ids > kept, bucket, ids).astype(ids.dtype)
        without[name] = float((arrays[f"test/{name}"] > kept).mean())
        sizes[name] = kept + 1 + buckets
    changed["about"] = np.array(json.dumps(about))
    return changed, {"rows": {name: sizes[name] for name in IDS}, "without_a_row": without}


def _write(results: table.Results, path: Path) -> None:
    """The page of the results."""
    machines = sorted({row["machine"] for row in results.rows.values()})
    lines = ["# Ids without a row of their own", "", (__doc__ or "").split("\n\n", 2)[2].strip().replace("\n", " "), ""]
    versions = sorted({row["versions"]["tensorflow"] for row in results.rows.values()})
    told = f"Machine: {'; '.join(machines)}. TensorFlow {', '.join(versions)}. Mean and deviation over the seeds."
    lines += [told, ""]
    heads = ("ids with a row", "the others", "rows: users, videos", "test rows without: user, video", "AUC", "logloss")
    lines += [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for share, side in sorted({(p, s) for p, s, _, _ in results.rows}, key=lambda key: (-float(key[0]), key[1])):
        found = results.of(share, side, MODEL)
        rows = ", ".join(f"{found[0]['rows'][name]:,}" for name in IDS)
        without = ", ".join(f"{100 * found[0]['without_a_row'][name]:.1f} %" for name in IDS)
        scores = [[row[name] for row in found] for name in ("auc", "logloss")]
        cells = [f"{np.mean(values):.4f} ± {np.std(values):.4f}" for values in scores]
        others = "none" if float(share) == 1 else side
        lines.append(f"| {100 * float(share):.0f} % | {others} | {rows} | {without} | {' | '.join(cells)} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
