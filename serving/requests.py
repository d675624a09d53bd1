"""Rows of raw features, checked against the contract and encoded as the tf.Examples that `serving_default` takes.

A missing feature (absent, or None) is left out; the model's parse spec answers it with its default. Histories, ids and
texts longer than `max_length` are sent whole: the graph cuts them (a history keeps its last entries, the others their
first), as it does in training, so that there is one place that decides.

No TensorFlow operation runs here; only its messages are used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from typing import Any

import numpy as np
from tensorflow_serving.apis import input_pb2

from transform import feed
from transform.contract import INPUT_ROLES, Contract, ContractError, Feature, Kind, did_you_mean

_FLOAT32_MAX = float(np.finfo(np.float32).max)


def to_example(row: Mapping[str, Any], contract: Contract) -> bytes:
    """One row as a serialized tf.Example.

    Args:
        row: Feature name to value: `str` (or `int`) for kind id, `str` for text, a list of them for ids and history, a
            finite number for number, a list of `dimension` finite numbers for vector; None is as good as absent.
        contract: What the model was trained on; its inputs are the features a row may have.

    Raises:
        ContractError: An unknown feature, or a value that does not fit its kind.
    """
    return _encode(row, _inputs(contract), contract, "row")


def to_examples(rows: Iterable[Mapping[str, Any]], contract: Contract) -> list[bytes]:
    """Every row as `to_example` encodes it; errors name the row's index, from 0."""
    inputs = _inputs(contract)
    return [_encode(row, inputs, contract, f"row {index}") for index, row in enumerate(rows)]


def to_feed_example(
    features: Mapping[str, Any],
    contract: Contract,
    *,
    length: int | None = None,
    now: int | None = None,
    exclude: Sequence[str] = (),
    queue: Sequence[str] = (),
    categories: Mapping[str, tuple[float, float]] | None = None,
    profile: Sequence[float] = (),
) -> bytes:
    """What a served feed is asked with, as a serialized tf.Example.

    Args:
        features: As for `to_example`; those that are known without knowing a video.
        contract: What the feed was assembled for.
        length: How many videos; None leaves it to the feed's settings.
        now: Unix seconds; None leaves it to the server's clock.
        exclude: Ids of videos not to be shown, beside those of the histories.
        queue: Ids of further candidates.
        categories: Of each primary category the user had events with: how many, and (positives + 1) / (events + 2).
        profile: The content that the user took to; nothing where that is not known.

    Raises:
        ContractError: A feature that is unknown, about a video, or of a value that does not fit.
    """
    inputs = {feature.name: feature for feature in contract.inputs if feature.about == "user"}
    message = _message(features, inputs, contract, "request")
    values = message.features.feature
    known = categories or {}
    for name, number, least in ((feed.LENGTH, length, 1), (feed.NOW, now, 0)):
        if number is not None:  # one that is there and empty is no missing one
            with _says(name.removeprefix("feed/")):
                values[name].int64_list.value.append(_integer(number, least))
    for name, ids in ((feed.EXCLUDE, exclude), (feed.QUEUE, queue), (feed.CATEGORIES, list(known))):
        with _says(name.removeprefix("feed/")):
            values[name].bytes_list.value.extend(_ids(ids))
    with _says("categories"):
        for pair in known.values():
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise _MisfitError(f"expected (events, rate) of each, got {_got(pair)}")
        values[feed.CATEGORY_EVENTS].float_list.value.extend(_finite(events) for events, _ in known.values())
        values[feed.CATEGORY_RATES].float_list.value.extend(_finite(rate) for _, rate in known.values())
    if len(profile):
        with _says("profile"):
            values[feed.PROFILE].float_list.value.extend(map(_finite, profile))
    return bytes(message.SerializeToString(deterministic=True))


def _inputs(contract: Contract) -> dict[str, Feature]:
    return {feature.name: feature for feature in contract.inputs}


def _encode(row: Mapping[str, Any], inputs: Mapping[str, Feature], contract: Contract, where: str) -> bytes:
    return bytes(_message(row, inputs, contract, where).SerializeToString(deterministic=True))


def _message(row: Mapping[str, Any], inputs: Mapping[str, Feature], contract: Contract, where: str) -> Any:
    if not isinstance(row, Mapping):
        raise ContractError(f"{where}: expected a mapping of feature names to values, got {_got(row)}")
    example = input_pb2.ExampleList().examples.add()
    for name, value in row.items():
        if name not in inputs:
            raise ContractError(f"{where}: {_unknown(name, inputs, contract)}")
        if value is None:
            continue
        try:
            _put(example.features.feature[name], value, inputs[name])
        except _MisfitError as misfit:
            raise ContractError(f"{where}, feature {name!r}: {misfit}") from None
    return example


class _MisfitError(ValueError):
    """What is wrong with one value; `_encode` says where."""


@contextmanager
def _says(what: str) -> Iterator[None]:
    """Which part of a request for a feed does not fit."""
    try:
        yield
    except _MisfitError as misfit:
        raise ContractError(f"request, {what}: {misfit}") from None


def _integer(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise _MisfitError(f"expected a whole number, got {_got(value)}")
    if not least <= int(value) < 2**63:
        raise _MisfitError(f"expected {least} or more, below 2**63, got {value}")
    return int(value)


def _unknown(name: Any, inputs: Mapping[str, Feature], contract: Contract) -> str:
    for feature in contract.features:
        if feature.name == name:
            if feature.role in INPUT_ROLES:
                return f"{name!r} is not known without knowing a video, and the feed knows it: leave it out"
            return f"{name!r} has role {feature.role.value} and is no input of a model: leave it out"
    hint = did_you_mean(str(name), inputs)
    return f"contract {contract.name!r} has no feature {name!r}{hint}: expected one of {', '.join(inputs)}"


def _put(message: Any, value: Any, feature: Feature) -> None:
    if feature.kind is Kind.NUMBER:
        message.float_list.value.append(_number(value, feature))
    elif feature.kind is Kind.VECTOR:
        message.float_list.value.extend(_vector(value, feature))
    elif feature.kind is Kind.TEXT:
        message.bytes_list.value.append(_text(value))
    elif feature.kind is Kind.ID:
        message.bytes_list.value.append(_id(value))
    else:
        message.bytes_list.value.extend(_ids(value))


def _id(value: Any) -> bytes:
    if type(value) is str:  # nearly always; `isinstance` with Integral is slow
        return _utf8(value)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value)).encode()
    if not isinstance(value, (str, bytes)):
        raise _MisfitError(f"expected an id (a string, or an int), got {_got(value)}")
    return _utf8(value)


def _text(value: Any) -> bytes:
    if not isinstance(value, (str, bytes)):
        raise _MisfitError(f"expected a text (one string), got {_got(value)}")
    return _utf8(value)


def _utf8(value: str | bytes) -> bytes:
    try:
        if isinstance(value, bytes):
            value.decode()
            return value
        return value.encode()
    except UnicodeError:
        raise _MisfitError(f"expected UTF-8, got {_got(value)}: decode it with its own encoding first") from None


def _list(value: Any, of: str) -> list[Any]:
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return list(value)
    if not isinstance(value, (list, tuple)):
        raise _MisfitError(f"expected a list of {of}, got {_got(value)}")
    return list(value)


def _ids(value: Any) -> list[bytes]:
    return [_entry(position, item, _id) for position, item in enumerate(_list(value, "ids"))]


def _entry(position: int, item: Any, encode: Callable[[Any], Any]) -> Any:
    try:
        return encode(item)
    except _MisfitError as misfit:
        raise _MisfitError(f"entry {position}: {misfit}") from None


def _number(value: Any, feature: Feature) -> float:
    number = _finite(value)  # compared in float32 too: what rounding made of a bound is in range
    if feature.minimum is not None and number < feature.minimum and np.float32(number) < np.float32(feature.minimum):
        raise _MisfitError(f"expected at least {feature.minimum:g}, got {number:g}")
    if feature.maximum is not None and number > feature.maximum and np.float32(number) > np.float32(feature.maximum):
        raise _MisfitError(f"expected at most {feature.maximum:g}, got {number:g}")
    return number


def _vector(value: Any, feature: Feature) -> list[float]:
    numbers = _list(value, "numbers")
    if len(numbers) != feature.dimension:
        raise _MisfitError(f"expected {feature.dimension} numbers, got {len(numbers)}")
    return [_entry(position, item, _finite) for position, item in enumerate(numbers)]


def _finite(value: Any) -> float:
    if type(value) is float and abs(value) <= _FLOAT32_MAX:  # nearly always
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise _MisfitError(f"expected a number, got {_got(value)}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= _FLOAT32_MAX:
        raise _MisfitError(f"expected a finite 32-bit float, got {_got(value)}: leave the feature out if it is missing")
    return number


def _got(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 40 else text[:40] + '...'}"
