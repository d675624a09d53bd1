"""Results of `ctr.py`: kept run by run in JSON, shown as a markdown table with the bars they are held against."""

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np

TITLES = {
    "A": "Protocol A: AutoInt's script (random split, no ids)",
    "B": "Protocol B: RecBole's fields and zip code (random split, with ids)",
    "T": "Protocol T: the default time split (ours with history and counters, peers with the plain fields)",
}
INTRODUCTION = """\
Written by `benchmarks/ctr.py`, whose docstring says what is equal on both sides. AUC and logloss are of the test rows,
at the epoch with the best validation AUC: mean and standard deviation over the seeds. rows/s is training: the median
epoch without the first, of the fastest seed, for the machine was shared. ms is what scoring 1,000 rows takes, of the
fastest seed. Both are of the seeds that ran with as many threads as the protocol's title says. The peer is
deepctr-torch."""
ACCOUNT = """\
What does not hold, over these runs. Without a history the crossing changes nothing (protocols A and B), and on B the
full form is not above our AutoInt with the same penalty on embeddings: the differences are smaller than the spread
over the seeds. What puts it above every peer, and every baseline with the peers' settings, is the penalty, which does
the same for DeepFM, DCN and AutoInt (`*_regularised`; not run on A). With the history of watched films as one more
field the full form is above all others (`mhsa_crossing_history`). On the time split, where history and counters are
fields, it is above `no_crossing`, and below `no_attention`, by less than the spread; DCN v2 and DeepFM with the same
penalty are as good there, and train several times as fast. The peers read no history and no counters: there the two
sides are two models of the same rows, not of the same fields."""
MORE_FIELDS = ("autoint_history", "deep_fm_history")
ABLATIONS = ("no_crossing", "no_attention", "low_order")
COMPARED = ("lr", "fm", "deep_fm", "autoint")
KEY = ("protocol", "side", "model", "seed")
Result = dict[str, Any]


class Results:
    """Measurements by (protocol, side, model, seed), saved at every addition."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = self._read()

    def _read(self) -> dict[tuple[Any, ...], Result]:
        known = json.loads(self.path.read_text()) if self.path.is_file() else []
        return {tuple(row[part] for part in KEY): row for row in known}

    def has(self, *key: Any) -> bool:
        """Whether (protocol, side, model, seed) is there."""
        return key in self.rows

    def add(self, row: Result) -> None:
        """Add or replace a measurement, and save all; the file is read again, for another run may have added to it."""
        self.rows = self._read()
        self.rows[tuple(row[part] for part in KEY)] = {**row, "machine": _machine()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        ordered = [self.rows[key] for key in sorted(self.rows)]
        part = self.path.with_suffix(".part")
        part.write_text("[\n" + ",\n".join(json.dumps(row) for row in ordered) + "\n]\n")
        os.replace(part, self.path)

    def of(self, protocol: str, side: str, model: str) -> list[Result]:
        """The seeds of one model."""
        return [row for (p, s, m, _), row in sorted(self.rows.items()) if (p, s, m) == (protocol, side, model)]

    def mean(self, protocol: str, side: str, model: str, value: str = "auc") -> float | None:
        """Mean over the seeds; None without a run."""
        rows = self.of(protocol, side, model)
        return float(np.mean([row[value] for row in rows])) if rows else None

    def pairs(self, protocol: str, one: tuple[str, str], other: tuple[str, str]) -> list[tuple[Result, Result]]:
        """The rows of one (side, model) beside those of another, of the seeds that both have."""
        second = {row["seed"]: row for row in self.of(protocol, *other)}
        return [(row, second[row["seed"]]) for row in self.of(protocol, *one) if row["seed"] in second]

    def gap(self, protocol: str, one: tuple[str, str], other: tuple[str, str]) -> tuple[float, int] | None:
        """How far the AUC of one (side, model) is above another, over the seeds of both, and how many those are."""
        gaps = [mine["auc"] - theirs["auc"] for mine, theirs in self.pairs(protocol, one, other)]
        return (float(np.mean(gaps)), len(gaps)) if gaps else None


def write(results: Results, path: Path) -> None:
    """Write the table."""
    rows = list(results.rows.values())
    machines = sorted({row["machine"] for row in rows})
    versions = sorted({f"{name} {version}" for row in rows for name, version in row["versions"].items()})
    lines = ["# CTR benchmark on the MovieLens-1M prefix", ""]
    lines += [INTRODUCTION, "", f"Machine: {'; '.join(machines)}. Versions: {', '.join(versions)}.", ""]
    for protocol in sorted({row["protocol"] for row in rows}, key="BAT".index):
        threads = max(row["threads"] for row in rows if row["protocol"] == protocol)
        title = f"## {TITLES[protocol]}, {threads} thread{'s' if threads > 1 else ''}"
        lines += [title, "", *_table(results, protocol, threads), ""]
    lines += ["## Bars", "", *_bars(results), "", ACCOUNT, ""]
    path.write_text("\n".join(lines))


def _machine() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
        name = next(line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def _table(results: Results, protocol: str, threads: int) -> list[str]:
    models = dict.fromkeys(row["model"] for row in results.rows.values() if row["protocol"] == protocol)
    best = sorted(models, key=lambda name: -(results.mean(protocol, "ours", name) or 0))
    lines = [
        "| model | AUC | logloss | seeds | rows/s | ms | peer's AUC | peer's logloss | peer's rows/s | peer's ms |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    for name in best:
        ours, peer = (results.of(protocol, side, name) for side in ("ours", "peer"))
        lines.append(f"| {name} | {' | '.join([*_cells(ours, threads, count=True), *_cells(peer, threads)])} |")
    return lines


def _cells(rows: list[Result], threads: int, count: bool = False) -> list[str]:
    if not rows:
        return [""] * (5 if count else 4)
    spread = [
        f"{np.mean(part):.4f} ± {np.std(part):.4f}" for part in ([r[v] for r in rows] for v in ("auc", "logloss"))
    ]
    timed = [r for r in rows if r["threads"] == threads]
    speed = ["", ""]
    if timed:
        speed = [f"{max(r['rows_per_second'] for r in timed):,.0f}", f"{min(r['ms_per_1000'] for r in timed):.2f}"]
    return [*spread, *([str(len(rows))] if count else []), *speed]


def _bars(results: Results) -> list[str]:
    lines = []
    for protocol in "BAT":
        if protocol == "T":
            continue  # the two sides do not read the same fields
        for name in COMPARED:
            if found := results.gap(protocol, ("ours", name), ("peer", name)):
                text = f"{protocol}: {name} at most 0.004 AUC below the peer's: {_by(found)}"
                lines.append(_bar(found[0] >= -0.004, text))
    for protocol in "BAT":
        lines += _full(results, protocol)
        lines += _above_all(results, protocol, "mhsa_crossing_history", ())
    ours, peer = (
        max((r["rows_per_second"] for r in results.of("B", side, "autoint") if r["threads"] == 2), default=0)
        for side in ("ours", "peer")
    )
    if ours and peer:
        lines.append(_bar(ours >= peer, f"B: AutoInt trains at {ours:,.0f} rows/s, the peer's at {peer:,.0f}"))
    return lines


def _full(results: Results, protocol: str) -> list[str]:
    lines = _above_all(results, protocol, "mhsa_crossing", MORE_FIELDS)
    for name in ABLATIONS:
        if found := results.gap(protocol, ("ours", "mhsa_crossing"), ("ours", name)):
            lines.append(_bar(found[0] > 0, f"{protocol}: the full form beats {name}: {_by(found)}"))
    return lines


def _above_all(results: Results, protocol: str, name: str, besides: tuple[str, ...]) -> list[str]:
    """Whether a model of ours is above every peer and baseline but those of `besides`."""
    left_out = ("mhsa_crossing", "mhsa_crossing_history", *ABLATIONS, *besides)
    known = {(side, model) for p, side, model, _ in results.rows if p == protocol and model not in left_out}
    gaps = {key: found for key in known if (found := results.gap(protocol, ("ours", name), key))}
    if not gaps:
        return []
    side, best = min(gaps, key=lambda key: gaps[key])
    found = gaps[side, best]
    return [_bar(found[0] > 0, f"{protocol}: {name} above all others; the nearest is {side} {best}: {_by(found)}")]


def _by(found: tuple[float, int]) -> str:
    return f"{found[0]:+.4f} over {found[1]} seed{'' if found[1] == 1 else 's'} of both"


def _bar(holds: bool, text: str) -> str:
    return f"- {'holds' if holds else '**does not hold**'}: {text}"
