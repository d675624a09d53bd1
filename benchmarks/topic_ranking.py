"""What topics give rankers (the paper's Table II), and what they cost beside content vectors (its Fig. 6).

    python benchmarks/topic_ranking.py [--runs demo=runs/demo movielens=RUN] [--seeds 1 2 3] [--only-missing]

Each RUN is the folder of a run with topics and a ranker: of `make demo`, and of `replay.py` (MovieLens with posters).
Its examples are taken as they are, its time split too. Every model is trained on them with the feature `content.topics`
and without it, and nothing else different; the epoch with the best validation AUC scores the test split. `ranker` is
the run's own; the others take its width, regularisation and training. New videos have no event in the train split.

The cost is that of DCN with fields of 8: without topics, with up to 8 topics a video, with a content vector of 128. In
bytes: a sample as it is sent (tf.Example) and as the model reads it; in time: 1,000 samples parsed and scored, the
median of 300 calls, the three in turn. Results: `results/topic_ranking.{json,md}`.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))  # before this folder, where `serving` would be a benchmark
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as `shortlist run` has it

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft
from protocols import table
from protocols.artifacts import newest
from sklearn.metrics import roc_auc_score

from pipeline.runs import load_run
from trainer.data import Split, read
from trainer.keras_version import keras
from trainer.ranker import Config, build_model
from trainer.training import CLICKS, TrainingConfig, fit
from transform.contract import TOPICS, Contract, Feature, Role
from transform.impressions import vocabulary_sizes
from transform.schema import parse_spec

HERE = Path(__file__).parent
MODELS = {"LR": "lr", "EMLP": "embedding_mlp", "DCN": "dcn_v1", "ranker": "mhsa_crossing"}
PAPER = {"LR": "+0.0068", "EMLP": "+0.0077", "DCN": "+0.0075", "ranker": ""}
SIDES = ("without", "with")
ACCOUNTS = {
    "movielens": """
Topics of films are made of posters, titles and genres. Genres are a feature of every model here, with topics and
without, and the prefix has but 3,883 films, whose own ids say most: there is little left for topics to tell.""",
    "demo": """
What a topic tells of a user's taste is told by a product of both, and LR has none: it can only say that a topic is
clicked more often than others, by everybody.""",
    "microseconds": """
  A content vector is read as one block, and one matrix brings it to the width of a field before anything else is done
  with it; up to 8 topics are read, looked up and averaged one by one. Either adds about a tenth of the whole, which is
  parsing, and the fields that all have.""",
}
CALLS, SAMPLES, WIDE = 300, 1000, 128
CHEAP = Config(architecture="dcn_v1", embedding_width=8, modality="concat")


class Data(NamedTuple):
    """The examples of a run."""

    contract: Contract
    sizes: dict[str, int]
    train: Split
    valid: Split
    test: dict[str, np.ndarray]
    new: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", metavar="NAME=RUN", default=[f"demo={HERE.parent}/runs/demo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--only-missing", action="store_true", help="skip what the results hold already")
    options = parser.parse_args()
    results = table.Results(HERE / "results" / "topic_ranking.json")
    for name, folder in (given.split("=", 1) for given in options.runs):
        run = load_run(Path(folder))
        data = _data(run)
        for model in MODELS:
            for side, seed in ((side, seed) for seed in options.seeds for side in SIDES):
                if not (options.only_missing and results.has(name, side, model, seed)):
                    measured = _measure(run, data, model, side, seed)
                    results.add({"protocol": name, "side": side, "model": model, "seed": seed, **measured})
                    (HERE / "results" / "topic_ranking.md").write_text("\n".join(_page(results)))
        for added, row in _costs(data).items():
            results.add({"protocol": f"cost on {name}", "side": "ours", "model": added, "seed": 0, **row})
        (HERE / "results" / "topic_ranking.md").write_text("\n".join(_page(results)))


def _data(run: dict[str, Any]) -> Data:
    contract = Contract.from_json(run["contract"])
    own = run["artifacts"]["ranker"]
    transform = Path(own["model_run"]).parents[2] / "Transform.impressions"
    output = tft.TFTransformOutput(str(newest(transform / "transform_graph")))
    spec, examples = output.transformed_feature_spec(), newest(transform / "transformed_examples")
    train, valid = (read([f"{examples}/Split-{part}/*"], spec, contract, 2**33) for part in ("train", "valid"))
    layer, parts, novelty = output.transform_features_layer(), [], []
    for batch in tf.data.TFRecordDataset(tf.io.gfile.glob(f"{own['examples']}/Split-test/*"), "GZIP").batch(4096):
        raw = tf.io.parse_example(batch, parse_spec(contract))
        parts.append({n: np.asarray(value) for n, value in layer(raw).items() if n in spec})
        rest = {"video_novelty": tf.io.FixedLenFeature([], tf.string, "")}
        rest[contract.label.name] = tf.io.FixedLenFeature([], tf.float32)  # which nobody sends to a served model
        further = tf.io.parse_example(batch, rest)
        parts[-1][contract.label.name] = further[contract.label.name].numpy()
        novelty.append(further)
    test = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    new = np.concatenate([row["video_novelty"].numpy() for row in novelty]) == b"new"
    return Data(contract, vocabulary_sizes(contract, output), train, valid, test, new)


def _measure(run: dict[str, Any], data: Data, model: str, side: str, seed: int) -> dict[str, Any]:
    given = run["config"]["models"]["ranker"]
    contract = data.contract if side == "with" else _without_topics(data.contract)
    config = Config.of({**given["model"], "architecture": MODELS[model]}, "model")
    training = TrainingConfig.of({**given["training"], "seed": seed}, "training")
    splits = [Split(contract, (), {}, split.rows, split.columns) for split in (data.train, data.valid)]
    build = partial(build_model, config, contract, data.sizes)
    with tempfile.TemporaryDirectory() as folder:
        strategy = tf.distribute.get_strategy()
        trained = fit(build, *splits, CLICKS, training, strategy, f"{folder}/checkpoint", f"{folder}/run")
    test = Split(contract, (), {}, len(data.new), data.test)
    score = tf.function(lambda inputs: trained(inputs, training=False)["score"], autograph=False)
    scores = np.concatenate([score(inputs).numpy() for inputs, _, _ in test.in_order(4096)])
    labels = data.test[contract.label.name]
    keras.backend.clear_session()
    gc.collect()
    return {
        "auc": float(roc_auc_score(labels, scores)),
        "auc_new": float(roc_auc_score(labels[data.new], scores[data.new])),
        "tensorflow": tf.__version__,
    }


def _without_topics(contract: Contract, more: tuple[Feature, ...] = ()) -> Contract:
    kept = tuple(feature for feature in contract.features if feature.source != TOPICS)
    return contract.model_copy(update={"features": (*kept, *more)})


def _costs(data: Data) -> dict[str, dict[str, float]]:
    """By what is added to a model without topics and content."""
    plain = _without_topics(data.contract)
    plain = plain.model_copy(update={"features": tuple(f for f in plain.features if f.dimension is None)})
    topics = next(feature for feature in data.contract.features if feature.source == TOPICS)
    content = Feature(name="content", kind="vector", role=Role.VIDEO, dimension=WIDE, source="videos.content")
    columns = {**data.test, "content": np.random.default_rng(0).normal(size=(len(data.new), WIDE)).astype(np.float32)}
    calls = {}
    for name, more in (("nothing", ()), ("topics", (topics,)), ("content", (content,))):
        contract = plain.model_copy(update={"features": (*plain.features, *more)})
        sent = [_example(contract, columns, row) for row in range(SAMPLES)]
        calls[name] = contract, tf.constant(sent), _scorer(contract, columns, data.sizes)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(CALLS + 20):
        for name, (_, sent, score) in calls.items():
            started = time.perf_counter()
            score(sent).numpy()
            times[name] += [time.perf_counter() - started] if number >= 20 else []
    return {
        name: {
            "microseconds": float(np.median(times[name])) / SAMPLES * 1e6,
            "sent_bytes": float(np.mean([len(example) for example in sent.numpy()])),
            "read_bytes": float(sum(columns[f.name][0].nbytes for f in contract.inputs)),
        }
        for name, (contract, sent, _) in calls.items()
    }


def _example(contract: Contract, columns: dict[str, np.ndarray], row: int) -> bytes:
    features = {}
    for feature in contract.inputs:
        values = np.atleast_1d(columns[feature.name][row])
        if values.dtype.kind == "f":
            features[feature.name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        elif values.any():  # padding is not sent
            features[feature.name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values[values > 0]))
    return bytes(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())


def _scorer(contract: Contract, columns: dict[str, np.ndarray], sizes: dict[str, int]) -> Any:
    """From serialized samples to scores, as a server does it after its vocabularies."""
    model, spec = build_model(CHEAP, contract, sizes), {}
    for feature in contract.inputs:
        shape = list(columns[feature.name].shape[1:])
        if columns[feature.name].dtype.kind == "f":
            spec[feature.name] = tf.io.FixedLenFeature(shape, tf.float32)
        elif shape:
            spec[feature.name] = tf.io.RaggedFeature(tf.int64)
        else:
            spec[feature.name] = tf.io.FixedLenFeature(shape, tf.int64, 0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def score(examples: tf.Tensor) -> tf.Tensor:
        parsed = tf.io.parse_example(examples, spec)
        dense = {
            name: value.to_tensor(shape=[None, *columns[name].shape[1:]])
            if isinstance(value, tf.RaggedTensor)
            else value
            for name, value in parsed.items()
        }
        return model(dense, training=False)["score"]

    return score


def _page(results: table.Results) -> list[str]:
    rows = list(results.rows.values())
    lines = [
        "# Topics in ranking",
        "",
        "Written by `benchmarks/topic_ranking.py`, whose docstring says what is done.",
        "",
    ]
    versions = sorted({row["tensorflow"] for row in rows if "tensorflow" in row})
    lines += [f"Machine: {rows[0]['machine']}. Versions: tensorflow {', '.join(versions)}.", ""]
    for protocol in sorted({row["protocol"] for row in rows}, key=lambda name: name.startswith("cost")):
        lines += [f"## {protocol}", ""]
        lines += _cost_table(results, protocol) if protocol.startswith("cost") else _auc_table(results, protocol)
        lines.append("")
    return lines


def _auc_table(results: table.Results, protocol: str) -> list[str]:
    lines = [
        "| model | AUC without topics | with | difference by seed | of new videos | the paper's |",
        "|---" * 6 + "|",
    ]
    for model in MODELS:
        pairs = results.pairs(protocol, ("with", model), ("without", model))
        if not pairs:
            continue
        means = [_spread([pair[side]["auc"] for pair in pairs]) for side in (1, 0)]
        by_seed, new = (
            ", ".join(f"{topics[key] - plain[key]:+.4f}" for topics, plain in pairs) for key in ("auc", "auc_new")
        )
        lines.append(f"| {model} | {' | '.join(means)} | {by_seed} | {new} | {PAPER[model]} |")
    return [*lines, "", *_verdicts(results, protocol), *ACCOUNTS.get(protocol, "").split("\n")]


def _verdicts(results: table.Results, protocol: str) -> list[str]:
    lines = []
    for model in MODELS:
        pairs = results.pairs(protocol, ("with", model), ("without", model))
        gains = [topics["auc"] - plain["auc"] for topics, plain in pairs]
        if len(gains) > 1:
            told = (
                "help" if min(gains) > 0 else "do not help" if max(gains) < 0 else "make no difference that is certain"
            )
            lines.append(f"- {model}: topics {told}, {np.mean(gains):+.4f} ± {np.std(gains):.4f}")
    return lines


def _cost_table(results: table.Results, protocol: str) -> list[str]:
    added = {name: results.of(protocol, "ours", name)[0] for name in ("nothing", "topics", "content")}
    columns = ("microseconds", "sent_bytes", "read_bytes")
    lines = ["| added | microseconds a sample | bytes sent a sample | bytes read a sample |", "|---" * 4 + "|"]
    lines += [f"| {name} | {' | '.join(f'{row[c]:.2f}' for c in columns)} |" for name, row in added.items()]
    lines.append("")
    for column in columns:
        topics, content = (added[name][column] - added["nothing"][column] for name in ("topics", "content"))
        verdict = "holds" if 3 * topics <= content else "**does not hold**"
        lines.append(
            f"- {verdict}: topics add at most a third of what content adds in {column}: {topics / content:.2f}"
        )
        if verdict != "holds" and column == "microseconds":
            lines += ACCOUNTS["microseconds"].split("\n")[1:]
    return lines


def _spread(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ± {np.std(values):.4f}"


if __name__ == "__main__":
    main()
