"""The committed data dictionary is that of the contracts."""

from pathlib import Path

from pipeline.feature_docs import PAGE, feature_page, write_page
from transform.contract import load


def test_the_committed_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == feature_page(), "run `make docs` and commit docs/features.md"


def test_every_feature_has_a_row_with_its_kind_and_source():
    page = feature_page()
    for contract in (load("amazon"), load("microvideo"), load("movielens")):
        for feature in contract.features:
            assert f"| `{feature.name}` | {feature.kind.value} | {feature.role.value} | `{feature.source}`" in page


def test_a_row_reads_as_declared():
    rows = feature_page().splitlines()
    assert (
        "| `watch_history` | history | user | `derived.user_history` | video_id | 50 |  |  | 0 "
        "| Videos the user clicked strictly before the impression, most recent last. |"
    ) in rows
    assert (
        "| `duration_seconds` | number | video | `videos.duration_seconds` |  |  | seconds | log | mean | At least 0. |"
    ) in rows
    assert "| word | 20000 | 2 | 1 | `title` |" in rows


def test_writes_where_told(tmp_path: Path):
    write_page(tmp_path / "features.md")
    assert (tmp_path / "features.md").read_text(encoding="utf-8") == feature_page()
