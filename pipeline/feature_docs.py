"""Writes docs/features.md, the data dictionary of the built-in contracts: `python -m pipeline.feature_docs`."""

from __future__ import annotations

from pathlib import Path

from transform.contract import BUILT_IN, Contract, Feature, Role, Scale, Vocabulary, load

PAGE = Path(__file__).parent.parent / "docs" / "features.md"
COLUMNS = ("name", "kind", "role", "source", "vocabulary", "size", "unit", "scale", "missing", "description")
HEAD = """\
# Features

Written by `make docs` from `transform/contracts/*.yaml`; change those, not this page.

- **source**: table and column of a world, or what is derived from strictly earlier events (`derived`).
- **vocabulary**: features with the same one share an embedding table.
- **size**: at most so many values (ids, history, text), or the dimension (vector).
- **scale**: how a number is brought to a common range, fitted on the train split.
- **missing**: what stands for a missing value. Index 0 is that of ids; a number without a default gets the train mean.
- A source marked † may be left out of a world.
"""


def feature_page() -> str:
    """The whole page, in Markdown."""
    contracts = [load(path.stem) for path in sorted(BUILT_IN.glob("*.yaml"))]
    return "\n".join([HEAD, *(_section(contract) for contract in contracts)])


def _section(contract: Contract) -> str:
    features = _table(COLUMNS, [_row(contract, feature) for feature in contract.features])
    vocabularies = _table(
        ("vocabulary", "most entries", "least occurrences", "buckets for others", "used by"),
        [_vocabulary_row(contract, name, vocabulary) for name, vocabulary in contract.vocabularies.items()],
    )
    return f"## {contract.name}\n\n{features}\n{vocabularies}"


def _row(contract: Contract, feature: Feature) -> list[str]:
    size = feature.max_length or feature.dimension
    return [
        f"`{feature.name}`",
        feature.kind.value,
        feature.role.value,
        f"`{feature.source}`{' †' if feature.optional else ''}",
        feature.vocabulary or "",
        str(size or ""),
        feature.unit,
        "" if feature.scale is Scale.NONE else feature.scale.value,
        _missing(contract, feature),
        _description(feature),
    ]


def _missing(contract: Contract, feature: Feature) -> str:
    if feature not in contract.inputs:
        return ""
    if feature.vocabulary is not None:
        return "0"
    if feature.dimension is not None:
        return "zeros"
    return "mean" if feature.default is None else f"{feature.default:g}"


def _description(feature: Feature) -> str:
    notes = [feature.description]
    if feature.minimum is not None:
        notes.append(f"At least {feature.minimum:g}.")
    if feature.maximum is not None:
        notes.append(f"At most {feature.maximum:g}.")
    if feature.role is Role.LABEL:
        notes.append(f"1 above {feature.positive_above:g}, 0 below {feature.negative_below:g}.")
    return " ".join(note for note in notes if note)


def _vocabulary_row(contract: Contract, name: str, vocabulary: Vocabulary) -> list[str]:
    users = ", ".join(f"`{f.name}`" for f in contract.features if f.vocabulary == name)
    most = "all" if vocabulary.max_size is None else str(vocabulary.max_size)
    return [name, most, str(vocabulary.min_count), str(vocabulary.oov_buckets), users]


def _table(head: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [list(head), ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def write_page(path: Path = PAGE) -> None:
    """Writes the page to `path`."""
    path.write_text(feature_page(), encoding="utf-8")


if __name__ == "__main__":
    write_page()
