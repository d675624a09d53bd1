"""Reading and writing tables: every form of a table reads the same, and a file that is none says so."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from components.world import files, tables
from transform import contract
from transform.contract import TABLES, ContractError

STRINGS = pa.list_(pa.string())
VIDEOS = pa.table(
    {
        "video_id": ["v1", "007", "v3"],
        "title": ['comma, "quote"', "two\nlines", None],
        "tags": pa.array([["a", "b"], [], None], STRINGS),
        "duration_seconds": [1.5, None, 3.0],
        "published_at": [100, None, -200],
        "look": pa.array([[0.5, -1.0], None, [2.0, 1e-3]], pa.list_(pa.float32())),
        "year": [1990, 1991, None],
        "score": [0.25, 1.0, 3e10],
    }
)


def joined(column: pa.ChunkedArray) -> pa.Array:
    return pa.array(
        [None if row is None else "|".join(str(value) for value in row) for row in column.to_pylist()], pa.string()
    )


def write_csv(folder: Path, name: str, data: pa.Table) -> None:
    flat = {c: joined(data[c]) if pa.types.is_list(data[c].type) else data[c] for c in data.column_names}
    pacsv.write_csv(pa.table(flat), folder / f"{name}.csv")


def test_csv_reads_as_parquet_does(tmp_path):
    tables.write_table(str(tmp_path / "p"), "videos", VIDEOS)
    (tmp_path / "c").mkdir()
    write_csv(tmp_path / "c", "videos", VIDEOS)
    assert tables.read_table(str(tmp_path / "c"), "videos").equals(tables.read_table(str(tmp_path / "p"), "videos"))
    assert tables.read_table(str(tmp_path / "p"), "videos").equals(VIDEOS)


letters = st.characters(blacklist_characters="|\0\r", blacklist_categories=("Cs",))
word = st.text(letters, min_size=1, max_size=5)


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(word, st.none() | st.text(letters, max_size=9), st.lists(word, max_size=3)), min_size=1, max_size=8
    )
)
def test_any_text_survives_csv(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("csv")
    ids, titles, tags = (list(column) for column in zip(*rows, strict=True))
    data = pa.table({"video_id": ids, "title": pa.array(titles, pa.string()), "tags": pa.array(tags, STRINGS)})
    write_csv(folder, "videos", data)
    assert tables.read_table(str(folder), "videos").to_pydict() == data.to_pydict()


def test_a_csv_file_of_many_blocks_keeps_its_line_breaks(tmp_path):
    # Arrow reads blocks of 1 MiB; this is some 3 MB of titles with a line break in each.
    data = pa.table({"video_id": [str(i) for i in range(3000)], "title": ["x" * 500 + "\n" + "y" * 500] * 3000})
    write_csv(tmp_path, "videos", data)
    assert tables.read_table(str(tmp_path), "videos").combine_chunks().equals(data)


def test_a_folder_of_parts_reads_as_one_table(tmp_path):
    folder = tmp_path / "videos"
    folder.mkdir()
    pq.write_table(VIDEOS.slice(0, 2), folder / "part-0.parquet")
    pq.write_table(VIDEOS.slice(2), folder / "part-1.parquet")
    (folder / "_SUCCESS").touch()
    assert tables.read_table(str(tmp_path), "videos").equals(VIDEOS)
    assert [shard.rows for shard in tables.shards(str(tmp_path), "videos")] == [2, 1]


def test_the_shards_together_are_the_table(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROW_GROUP", 3)
    data = pa.table({"user_id": [str(i) for i in range(8)], "video_id": ["v"] * 8, "at": np.arange(8)})
    tables.write_table(str(tmp_path), "interactions", data)
    shards = tables.shards(str(tmp_path), "interactions")
    assert [(shard.row_group, shard.rows) for shard in shards] == [(0, 3), (1, 3), (2, 2)]
    parts = [tables.read_shard(shard, "interactions", ["at", "user_id"]) for shard in shards]
    assert pa.concat_tables(parts).equals(tables.read_table(str(tmp_path), "interactions", ["at", "user_id"]))
    assert tables.read_table(str(tmp_path), "interactions").equals(data)


def test_a_csv_file_is_one_shard(tmp_path):
    write_csv(tmp_path, "videos", VIDEOS)
    (shard,) = tables.shards(str(tmp_path), "videos")
    assert shard.row_group is None
    assert tables.read_shard(shard, "videos", ["title"]).equals(VIDEOS.select(["title"]))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (pa.table({"user_id": [1, 2]}), pa.table({"user_id": ["1", "2"]})),
        (pa.table({"user_id": pa.array(["a", "b"]).dictionary_encode()}), pa.table({"user_id": ["a", "b"]})),
        (pa.table({"at": pa.array([7_000, None], pa.timestamp("ms"))}), pa.table({"at": [7, None]})),
        (pa.table({"at": [7.0, None]}), pa.table({"at": [7, None]})),  # what pandas makes of integers with gaps
        (pa.table({"x": pa.array([1, 2], pa.int8())}), pa.table({"x": [1, 2]})),
        (
            pa.table({"x": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.int32(), 2))}),
            pa.table({"x": pa.array([[1, 2], None, [3, 4]], pa.list_(pa.float32()))}),
        ),
    ],
)
def test_columns_become_canonical(given, expected):
    assert tables.conform(given, "interactions").equals(expected)


def test_a_contract_decides_what_a_csv_column_is(tmp_path):
    (tmp_path / "users.csv").write_text("user_id,zip_code,gender,age,occupation\n1,07030,M,25,4\n2,10001,F,1,2\n")
    assert tables.read_table(str(tmp_path), "users")["age"].to_pylist() == [25, 1]
    assert tables.read_table(str(tmp_path), "users")["zip_code"].to_pylist() == ["07030", "10001"]  # 07030 is no number
    typed = tables.read_table(str(tmp_path), "users", contract=contract.load("movielens"))
    assert typed["age"].to_pylist() == ["25", "1"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("users.parquet", b"user_id\nu1\n", r"users\.parquet: expected a whole Parquet file: .*name it \.csv"),
        ("users.csv", b"", r"users\.csv: expected CSV with a header line, got an empty file"),
        ("users.csv", b"user_id\0,\x00b\n1,2\n", r"users\.csv: expected CSV with a header line, got binary data"),
        (
            "users.csv",
            b"user_id,name\nu1,caf\xe9\n",
            r"users\.csv, line 2: expected UTF-8 text, got the byte b'\\xe9': convert",
        ),
        (
            "users.csv",
            b"user_id,name\nu1\n",
            r"users\.csv: not a CSV file that can be read: .*Expected 2 columns, got 1",
        ),
        ("users.csv", b"user_id,user_id\nu1,u1\n", r"users\.csv: the column 'user_id' is there twice: keep one"),
    ],
)
def test_a_file_that_is_no_table_is_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ContractError, match=message):
        tables.read_table(str(tmp_path), "users")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "at",
            "yesterday",
            r"column at, row 1: expected int64, got 'yesterday': cast it to integer \(times: unix seconds",
        ),
        ("at", "1.5", r"column at, row 1: expected int64, got '1.5'"),
        ("look", "1|x", r"column look, row 1: expected numbers with \| between them, got '1\|x'"),
    ],
)
def test_a_csv_value_of_the_wrong_type_is_named_with_its_row(tmp_path, column, value, message):
    rules = contract.parse(
        """
name: tiny
vocabularies: {user_id: {}, video_id: {}}
features:
  - {name: user_id, kind: id, role: user, vocabulary: user_id, source: users.user_id}
  - {name: video_id, kind: id, role: video, vocabulary: video_id, source: videos.video_id}
  - {name: look, kind: vector, role: context, dimension: 2, source: interactions.look}
  - {name: liked, kind: number, role: label, source: interactions.liked, positive_above: 0, negative_below: 0}
"""
    )
    sound = {"user_id": "u", "video_id": "v", "at": "12.0", "look": "1|2.5", "liked": "nan"}
    rows = [sound, {**sound, column: value}]
    text = "\n".join([",".join(sound), *(",".join(row.values()) for row in rows)])
    (tmp_path / "interactions.csv").write_text(text + "\n")
    with pytest.raises(ContractError, match=message):
        tables.read_table(str(tmp_path), "interactions", contract=rules)
    (tmp_path / "interactions.csv").write_text(text.replace(value, sound[column]) + "\n")
    data = tables.read_table(str(tmp_path), "interactions", contract=rules)
    assert data["at"].to_pylist() == [12, 12]
    assert data["look"].to_pylist() == [[1.0, 2.5]] * 2
    assert np.isnan(data["liked"].to_numpy()).all()


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(ContractError, match="no such folder"):
        tables.read_table(str(tmp_path / "nowhere"), "users")
    with pytest.raises(ContractError, match=r"the table videos is missing: expected videos\.parquet, videos\.csv or"):
        tables.read_table(str(tmp_path), "videos")
    tables.write_table(str(tmp_path), "videos", VIDEOS)
    with pytest.raises(
        ContractError, match=r"videos\.parquet: the column 'titel' is missing \(did you mean 'title'\?\)"
    ):
        tables.read_table(str(tmp_path), "videos", ["titel"])
    write_csv(tmp_path, "videos", VIDEOS)
    with pytest.raises(ContractError, match=r"there more than once .*: keep one"):
        tables.read_table(str(tmp_path), "videos")


def test_the_fingerprint_follows_the_content(tmp_path):
    def world(name: str, title: str) -> str:
        folder = str(tmp_path / name)
        for table in TABLES:
            tables.write_table(folder, table, pa.table({"title": [title]}))
        return tables.fingerprint(folder, TABLES)

    assert world("a", "x") == world("b", "x") != world("c", "y")
    tables.write_table(str(tmp_path / "a"), "frame_feedback", pa.table({"liked": [1.0]}))
    told = tables.fingerprint(str(tmp_path / "a"), TABLES)
    tables.write_table(str(tmp_path / "a"), "frame_feedback", pa.table({"liked": [0.0]}))
    assert len({world("b", "x"), told, tables.fingerprint(str(tmp_path / "a"), TABLES)}) == 3


def test_a_failed_write_leaves_the_old_table(tmp_path):
    tables.write_table(str(tmp_path), "videos", VIDEOS)

    def fail() -> None:
        with files.writing(str(tmp_path / "videos.parquet")) as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        fail()
    assert tables.read_table(str(tmp_path), "videos").equals(VIDEOS)


def test_a_world_may_lie_on_a_file_system_of_tensorflow():
    world = "ram://shortlist-test/world"
    tables.write_table(world, "videos", VIDEOS)
    assert tables.read_table(world, "videos", ["title", "look"]).equals(VIDEOS.select(["title", "look"]))
    assert [shard.rows for shard in tables.shards(world, "videos")] == [3]
    with pytest.raises(ContractError, match="the table users is missing"):
        tables.fingerprint(world, TABLES)


def test_local_worlds_need_no_tensorflow(tmp_path):
    tables.write_table(str(tmp_path), "videos", VIDEOS)
    code = (
        "import sys; from components.world import check, tables; from components.importers import demo, tables as own;"
        f"tables.read_table({str(tmp_path)!r}, 'videos'); sys.exit('tensorflow' in sys.modules)"
    )
    root = Path(tables.__file__).parents[2]
    for _ in range(5):  # Arrow's threads once aborted a third of the processes at their end
        assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
