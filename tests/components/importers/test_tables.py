"""A user's own tables: in any form, checked, and the same world out of each."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.importers.tables import import_tables
from components.world import check
from components.world.tables import fingerprint, read_table, write_table
from transform import contract
from transform.contract import TABLES, ContractError

NOW = 2_000_000_000
USERS = "user_id,gender,age,occupation,zip_code\n1,F,25,3,07030\n2,M,35,4,10001\n1,F,25,3,07030\n"
VIDEOS = "video_id,title,tags,release_year,primary_category\n10,Heat,Action|Crime,1995,Action\n11,,,1996,Drama\n"
EVENTS = "user_id,video_id,at,rating\n1,10,1000,5\n2,11,1001,\n2,12,1002,4\n"


@pytest.fixture
def csv_folder(tmp_path) -> Path:
    source = tmp_path / "csv"
    source.mkdir()
    for name, text in (("users", USERS), ("videos", VIDEOS), ("interactions", EVENTS)):
        (source / f"{name}.csv").write_text(text)
    return source


def test_csv_tables_become_a_checked_world(csv_folder, tmp_path):
    world = str(tmp_path / "w")
    summary = import_tables(str(csv_folder), world, contract="movielens", now=NOW)
    assert summary.rows == {"users": 2, "videos": 2, "interactions": 1}
    assert summary.rejected == {
        "users: duplicate user_id": 1,
        "interactions: rating is missing or NaN": 1,
        "interactions: unknown video_id": 1,
    }
    assert len(read_table(world, "rejected")) == 3
    assert read_table(world, "users")["zip_code"].to_pylist() == ["07030", "10001"]
    assert read_table(world, "users")["age"].to_pylist() == ["25", "35"]
    assert read_table(world, "videos")["tags"].to_pylist() == [["Action", "Crime"], None]


def test_parquet_with_integer_ids_gives_the_same_world_as_csv(csv_folder, tmp_path):
    source = tmp_path / "parquet"
    (source / "interactions").mkdir(parents=True)
    users = {"user_id": [1, 2, 1], "gender": ["F", "M", "F"], "age": [25, 35, 25], "occupation": [3, 4, 3]}
    write_table(str(source), "users", pa.table({**users, "zip_code": ["07030", "10001", "07030"]}))
    videos = {"video_id": [10, 11], "title": ["Heat", None], "tags": pa.array([["Action", "Crime"], None])}
    rest = {"release_year": [1995, 1996], "primary_category": ["Action", "Drama"]}
    write_table(str(source), "videos", pa.table({**videos, **rest}))
    events = pa.table(
        {"user_id": [1, 2, 2], "video_id": [10, 11, 12], "at": [1000, 1001, 1002], "rating": [5, None, 4]}
    )
    for i in range(3):
        pq.write_table(events.slice(i, 1), source / "interactions" / f"part-{i}.parquet")
    for name, folder in (("a", csv_folder), ("b", source)):
        import_tables(str(folder), str(tmp_path / name), contract="movielens", now=NOW)
    assert fingerprint(str(tmp_path / "a"), TABLES) == fingerprint(str(tmp_path / "b"), TABLES)


def test_frame_feedback_comes_along(csv_folder, tmp_path):
    (csv_folder / "frame_feedback.csv").write_text("user_id,video_id,frame_index,liked\n1,10,0,1\n")
    import_tables(str(csv_folder), str(tmp_path / "w"), contract="movielens", now=NOW)
    assert read_table(str(tmp_path / "w"), "frame_feedback").to_pylist() == [
        {"user_id": "1", "video_id": "10", "frame_index": 0, "liked": 1.0}
    ]


def test_relative_paths_of_media_start_at_the_source(csv_folder, tmp_path):
    header, first, second = VIDEOS.splitlines()
    lines = (f"{header},media_path,cover_path", f"{first},clips/a.mp4,/b.jpg", f"{second},clips/a.mp4,")
    (csv_folder / "videos.csv").write_text("\n".join(lines) + "\n")
    import_tables(str(csv_folder), str(tmp_path / "w"), contract="movielens", now=NOW)
    made = read_table(str(tmp_path / "w"), "videos")
    assert set(made["media_path"].to_pylist()) == {str(csv_folder / "clips" / "a.mp4")}
    assert [path or None for path in made["cover_path"].to_pylist()] == ["/b.jpg", None]


def test_tables_of_videos_alone_make_a_world_that_passes_its_own_check(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.mp4").write_bytes(b"?")
    (source / "videos.csv").write_text("video_id,media_path\na,a.mp4\nb,b.mp4\n")
    summary = import_tables(str(source), str(tmp_path / "w"), now=NOW)
    assert (summary.rows, summary.rejected) == ({"videos": 1}, {"videos: media_path is not a file": 1})
    assert check.check_world(summary.world, contract.load("microvideo"), NOW).counts == {}


def test_the_source_is_never_overwritten(csv_folder):
    with pytest.raises(ContractError, match="got the same folder: choose another --out"):
        import_tables(str(csv_folder), f"{csv_folder}/", contract="movielens", now=NOW)


def test_a_missing_table_and_an_empty_one_are_named(csv_folder, tmp_path):
    (csv_folder / "videos.csv").write_text(VIDEOS.splitlines()[0] + "\n")
    with pytest.raises(ContractError, match=r"videos\.csv: expected rows, got an empty table"):
        import_tables(str(csv_folder), str(tmp_path / "w"), contract="movielens", now=NOW)
    (csv_folder / "videos.csv").unlink()
    with pytest.raises(ContractError, match=r"the table videos is missing"):
        import_tables(str(csv_folder), str(tmp_path / "w"), contract="movielens", now=NOW)
    assert not (tmp_path / "w").exists()
