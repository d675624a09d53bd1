"""Amazon reviews: hand-made files in the forms of 2014 and 2018."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from components.importers.amazon import import_amazon
from components.world.tables import read_table
from transform import contract
from transform.contract import ContractError

NOW = 2_000_000_000
REVIEWS = [
    {"reviewerID": "A1", "asin": "000000000X", "overall": 5.0, "unixReviewTime": 1252800000, "helpful": [0, 0]},
    {
        "reviewerID": "A2",
        "asin": "000000000X",
        "overall": 3,
        "unixReviewTime": 1252886400,
        "reviewText": "so \u00e9 so",
    },
    {"reviewerID": "A1", "asin": "B000000001", "overall": 1.0, "unixReviewTime": 1252886400, "image": ["a"]},
]


def write_reviews(folder: Path, rows: list[dict]) -> None:
    text = "\n".join(json.dumps(row) for row in rows)
    (folder / "reviews_Toys_5.json.gz").write_bytes(gzip.compress(text.encode()))


@pytest.fixture
def folder(tmp_path) -> Path:
    source = tmp_path / "amazon"
    source.mkdir()
    write_reviews(source, REVIEWS)
    return source


def test_reviews_alone_are_a_world(folder, tmp_path):
    summary = import_amazon(str(folder), str(tmp_path / "w"), now=NOW)
    assert summary.rows == {"users": 2, "videos": 2, "interactions": 3}
    assert summary.notes[0].startswith("no meta_*.json beside the reviews")
    assert "videos has no column 'title': the optional feature 'title' stays empty" in summary.notes
    events = read_table(str(tmp_path / "w"), "interactions").to_pydict()
    assert events == {
        "user_id": ["A1", "A2", "A1"],
        "video_id": ["000000000X", "000000000X", "B000000001"],
        "rating": [5.0, 3.0, 1.0],
        "at": [1252800000, 1252886400, 1252886400],
    }


@pytest.mark.parametrize(
    "lines",
    [
        [  # 2014: Python literals
            "{'asin': '000000000X', 'title': 'Ball &amp; chain', 'price': 12.99, 'brand': \"Bob's\", "
            "'categories': [['Toys', 'Balls', 'Red'], ['Sale']]}",
            "{'asin': 'UNSEEN', 'title': 'x'}",
            "not a record",
            "{'asin': '000000000X', 'title': 'a second record of it'}",
        ],
        [  # 2018: JSON
            json.dumps(
                {
                    "asin": "000000000X",
                    "title": "Ball &amp; chain",
                    "price": "$12.99 - $20",
                    "brand": "Bob's",
                    "category": ["Toys", "Balls", "Red"],
                }
            ),
            '{"asin": "UNSEEN"}',
            '{"title": "no asin"}',
        ],
    ],
)
def test_metadata_of_both_ages_describe_the_videos(folder, tmp_path, lines):
    (folder / "meta_Toys.json").write_text("\n".join(lines))
    summary = import_amazon(str(folder), str(tmp_path / "w"), now=NOW)
    first, second = read_table(str(tmp_path / "w"), "videos").to_pylist()
    assert first == {
        "video_id": "000000000X",
        "title": "Ball & chain",
        "tags": ["Toys", "Balls", "Red"],
        "primary_category": "Toys",
        "secondary_category": "Balls",
        "author_id": "Bob's",
        "price": 12.99,
    }
    assert (second["video_id"], second["title"], second["tags"], second["price"]) == ("B000000001", "", [], None)
    assert summary.rejected == {"videos: metadata line is neither JSON nor a Python literal with an asin": 1}
    (bad,) = read_table(str(tmp_path / "w"), "rejected").to_pylist()
    assert (bad["table"], bad["row"], json.loads(bad["content"])) == ("videos", 2, lines[2])


@pytest.mark.parametrize("line", ["{[1]: 2}", '{"asin": "000000000X", "categories": {"0": "Toys"}, "title": "x"}'])
def test_metadata_of_another_make_stops_nothing(folder, tmp_path, line):
    (folder / "meta_Toys.json").write_text(line)
    import_amazon(str(folder), str(tmp_path / "w"), now=NOW)
    assert read_table(str(tmp_path / "w"), "videos")["tags"].to_pylist() == [[], []]


def test_image_vectors_are_projected_and_keep_their_distances(folder, tmp_path):
    rng = np.random.default_rng(1)
    images = rng.standard_normal((3, 4096)).astype("<f4")
    names = (b"UNSEEN0000", b"B000000001", b"000000000X")
    content = b"".join(name + image.tobytes() for name, image in zip(names, images, strict=True))
    (folder / "image_features_Toys.b").write_bytes(content)
    import_amazon(str(folder), str(tmp_path / "w"), images=True, now=NOW)
    vectors = np.array(read_table(str(tmp_path / "w"), "videos")["visual_vector"].to_pylist())
    assert vectors.shape == (2, 128)
    # ids come in the order of the reviews: 000000000X first. A projection to 128 is off by about 1/sqrt(128) = 9 %.
    norms = np.linalg.norm(images[[2, 1]], axis=1)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), norms, rtol=0.3)
    distance = np.linalg.norm(images[2] - images[1])
    np.testing.assert_allclose(np.linalg.norm(vectors[0] - vectors[1]), distance, rtol=0.3)
    again = np.random.default_rng(0).standard_normal((4096, 128)).astype(np.float32) / np.sqrt(128)
    np.testing.assert_allclose(vectors, images[[2, 1]] @ again, rtol=1e-3, atol=1e-3)
    (folder / "image_features_Toys.b").write_bytes(content[:-4])
    with pytest.raises(ContractError, match=r"image_features_Toys\.b: expected records of 16394 bytes"):
        import_amazon(str(folder), str(tmp_path / "w"), images=True, now=NOW)


def test_a_rating_above_3_is_positive_and_every_other_negative():
    label = contract.load("amazon").label
    positive = [stars for stars in (1, 2, 3, 4, 5) if stars > label.positive_above]
    negative = [stars for stars in (1, 2, 3, 4, 5) if stars < label.negative_below]
    assert (positive, negative) == ([4, 5], [1, 2, 3])


def test_row_faults_are_quarantined(folder, tmp_path):
    late = {**REVIEWS[0], "unixReviewTime": 1252800000000}
    nobody = {key: value for key, value in REVIEWS[0].items() if key != "reviewerID"}
    write_reviews(folder, [*REVIEWS, late, nobody, {**REVIEWS[0], "overall": 7.0}])
    summary = import_amazon(str(folder), str(tmp_path / "w"), now=NOW)
    assert summary.rows["interactions"] == 3
    assert summary.rejected == {
        "interactions: at in milliseconds, expected unix seconds": 1,
        "interactions: missing user_id": 1,
        "interactions: rating above 5": 1,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            gzip.compress(b'{"reviewerID": "A1"\n{'),
            r"reviews_Toys_5\.json\.gz: expected one JSON object a line with .*parse error",
        ),
        (
            gzip.compress(b'{"reviewerID": "A1", "overall": "five"}'),
            r"reviews_Toys_5\.json\.gz: expected .*number to string",
        ),
        (gzip.compress(b'{"reviewerID": "A1", "asin": "B", "overall": 5}'), r"no line has the field 'unixReviewTime'"),
        (b'{"reviewerID": "A1"}', r"not a complete gzip file"),
        (gzip.compress(b"x" * 999)[:-9], r"not a complete gzip file"),
    ],
    ids=["not JSON", "another type", "no time", "not packed", "cut off"],  # packed bytes hold the time of packing
)
def test_a_malformed_review_file_is_named(folder, tmp_path, content, message):
    (folder / "reviews_Toys_5.json.gz").write_bytes(content)
    with pytest.raises(ContractError, match=message):
        import_amazon(str(folder), str(tmp_path / "w"), now=NOW)


def test_several_review_files_are_refused_by_name(folder, tmp_path):
    (folder / "Baby_5.json").write_text(json.dumps(REVIEWS[0]))
    with pytest.raises(ContractError, match=r"expected one file .* got .*Baby_5.json and reviews_Toys_5.json.gz"):
        import_amazon(str(folder), str(tmp_path / "w"), now=NOW)


def test_tables_of_an_earlier_import_are_not_taken_for_this_ones(folder, tmp_path):
    world = tmp_path / "w"
    world.mkdir()
    (world / "frame_feedback.csv").write_text("user_id,video_id,frame,at,positive\n")
    with pytest.raises(ContractError, match=r"got frame_feedback of an earlier one.*--out"):
        import_amazon(str(folder), str(world), now=NOW)
    assert not (world / "users.parquet").exists()
