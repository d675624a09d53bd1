"""MovieLens, the real prefix and hand-made copies of both layouts."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from components.importers.movielens import import_movielens
from components.world.tables import read_table
from transform.contract import ContractError

NOW = 2_000_000_000
USERS = "1::F::1::10::48067\n2::M::56::16::07072\n"
MOVIES = (
    "1::Toy Story (1995)::Animation|Children's\n"
    "2::Mis\xe9rables, Les (1958)::Drama\n"
    "3::Shanghai Triad (Yao a yao) (1995)::Drama\n"
    "4::unknown::\n"
)
RATINGS = "1::1::5::978300760\n1::2::3::978302109\n2::9::3::978302109\n"


@pytest.fixture
def folder(tmp_path) -> Path:
    source = tmp_path / "ml"
    source.mkdir()
    for name, text in (("users", USERS), ("movies", MOVIES), ("ratings", RATINGS)):
        (source / f"{name}.dat").write_text(text, encoding="latin-1")
    return source


def column(world: Path, table: str, name: str) -> list:
    return read_table(str(world), table, [name])[name].to_pylist()


def test_a_zip_of_posters_that_was_cut_off_is_named(folder, tmp_path):
    with zipfile.ZipFile(folder / "posters_w150.zip", "w") as archive:
        archive.writestr("posters/2.jpg", b"two" * 1000)
    whole = (folder / "posters_w150.zip").read_bytes()
    (folder / "posters_w150.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ContractError, match=r"posters_w150.zip: not a whole ZIP archive: .*: download it again"):
        import_movielens(str(folder), str(tmp_path / "w"), posters=True, now=NOW)


def test_the_1m_layout_is_read(folder, tmp_path):
    summary = import_movielens(str(folder), str(tmp_path / "w"), now=NOW)
    assert summary.rows == {"users": 2, "videos": 4, "interactions": 2}
    assert summary.rejected == {"interactions: unknown video_id": 1}
    assert summary.notes == ["ratings: 3: 2, 5: 1"]
    w = tmp_path / "w"
    assert column(w, "users", "zip_code") == ["48067", "07072"]
    assert column(w, "videos", "title") == ["Toy Story", "Misérables, Les", "Shanghai Triad (Yao a yao)", "unknown"]
    assert column(w, "videos", "release_year") == ["1995", "1958", "1995", None]
    # 1958-01-01 is 12 years with 3 leap days before 1970: -(12 * 365 + 3) * 86,400
    assert column(w, "videos", "published_at") == [788_918_400, -378_691_200, 788_918_400, None]
    assert column(w, "videos", "tags")[:2] == [["Animation", "Children's"], ["Drama"]]
    assert column(w, "videos", "primary_category")[:2] == ["Animation", "Drama"]
    assert column(w, "videos", "secondary_category")[:2] == ["Children's", ""]
    assert column(w, "interactions", "rating") == [5.0, 3.0]
    assert column(w, "interactions", "at") == [978300760, 978302109]


def test_the_100k_layout_is_read(tmp_path):
    (tmp_path / "u.user").write_text("1|25|M|technician|85711\n2|7|F|other|94043\n3||F|other|94043\n")
    (tmp_path / "u.genre").write_text("unknown|0\nAction|1\nComedy|2\n\n")
    items = "1|Toy Story (1995)|01-Jan-1995||http://x|0|1|1\n2|Belle de jour (1967)|01-Jan-1967||http://y|0|0|0\n"
    (tmp_path / "u.item").write_text(items, encoding="latin-1")
    (tmp_path / "u.data").write_text("1\t2\t3\t881250949\n2\t1\t4\t891717742\n")
    w = tmp_path / "w"
    assert import_movielens(str(tmp_path), str(w), now=NOW).rows == {"users": 3, "videos": 2, "interactions": 2}
    assert column(w, "users", "age") == ["25", "1", None]  # 25 begins 25-34, 7 below 18, whose group 1M calls 1
    assert column(w, "users", "gender") == ["M", "F", "F"]
    assert column(w, "videos", "tags") == [["Action", "Comedy"], []]
    assert column(w, "videos", "release_year") == ["1995", "1967"]
    assert column(w, "interactions", "rating") == [3.0, 4.0]


def test_posters_become_covers(folder, tmp_path):
    with zipfile.ZipFile(folder / "posters_w150.zip", "w") as archive:
        archive.writestr("posters/2.jpg", b"two")
        archive.writestr("posters/77.jpg", b"no such movie")
        archive.writestr("../../3.jpg", b"escaping")
    import_movielens(str(folder), str(tmp_path / "w"), posters=True, now=NOW)
    covers = column(tmp_path / "w", "videos", "cover_path")
    assert covers == [None, "covers/2.jpg", "covers/3.jpg", None]
    assert sorted(p.name for p in (tmp_path / "w" / "covers").iterdir()) == ["2.jpg", "3.jpg"]
    assert not (tmp_path.parent / "3.jpg").exists()
    (folder / "posters").mkdir()
    (folder / "posters" / "1.jpg").write_bytes(b"one")
    import_movielens(str(folder), str(tmp_path / "v"), posters=True, now=NOW)
    assert column(tmp_path / "v", "videos", "cover_path") == ["covers/1.jpg", None, None, None]
    assert (tmp_path / "v" / "covers" / "1.jpg").read_bytes() == b"one"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "ratings.dat",
            "1::1::5\n",
            r"ratings\.dat: expected the fields user_id, video_id, rating, at in every line: .*got 3",
        ),
        (
            "ratings.dat",
            "1::1::5::0\n1::1::x::0\n",
            r"ratings\.dat: .*Row #2: CSV conversion error to double: invalid value 'x'",
        ),
        ("ratings.dat", "1::1::5::978300760000\n", r"column at, row 0: expected unix seconds, got milliseconds"),
        ("users.dat", "", r"users\.dat: expected the fields .*Empty CSV file"),
    ],
)
def test_a_malformed_file_is_named(folder, tmp_path, name, text, message):
    (folder / name).write_text(text)
    with pytest.raises(ContractError, match=message):
        import_movielens(str(folder), str(tmp_path / "w"), now=NOW)


def test_a_missing_file_is_named(folder, tmp_path):
    (folder / "movies.dat").unlink()
    with pytest.raises(ContractError, match=r"expected a file movies\.dat or movies\.dat\.gz: there is none"):
        import_movielens(str(folder), str(tmp_path / "w"))
    with pytest.raises(ContractError, match="no such folder"):
        import_movielens(str(tmp_path / "nowhere"), str(tmp_path / "w"))
    with pytest.raises(ContractError, match="expected --from DIR"):
        import_movielens(None, str(tmp_path / "w"))


def test_the_real_prefix_comes_in_whole(shared_data, tmp_path):
    world = tmp_path / "w"
    summary = import_movielens(str(shared_data / "movielens-1m"), str(world), now=NOW)
    assert summary.rows == {"users": 6_040, "videos": 3_883, "interactions": 487_650}
    assert summary.rejected == {}
    events = read_table(str(world), "interactions")
    stars, counts = np.unique(events["rating"].to_numpy(), return_counts=True)
    expected = {1: 27_472, 2: 53_838, 3: 127_216, 4: 170_579, 5: 108_545}  # README of the shared data
    assert dict(zip(stars.tolist(), counts.tolist(), strict=True)) == expected
    assert len(set(events["user_id"].to_pylist())) == 2_999
    assert len(set(events["video_id"].to_pylist())) == 3_615
    years = dict(zip(column(world, "videos", "video_id"), column(world, "videos", "release_year"), strict=True))
    assert (years["1"], None in years.values(), min(years.values())) == ("1995", False, "1919")
    assert "City of Lost Children, The" in column(world, "videos", "title")
    assert any("é" in title for title in column(world, "videos", "title"))


def test_several_files_of_ratings_are_refused_by_name(folder, tmp_path):
    (folder / "ratings_first_2.dat").write_text(RATINGS)
    with pytest.raises(
        ContractError, match=r"expected one file .*, got ratings\.dat and ratings_first_2\.dat: keep one"
    ):
        import_movielens(str(folder), str(tmp_path / "w"), now=NOW)
    assert not (tmp_path / "w").exists()


def test_a_packed_copy_beside_u_data_is_refused(tmp_path):
    for name, text in (("u.user", "1|25|M|other|1\n"), ("u.genre", "Drama|0\n"), ("u.item", "1|A (1990)||||1\n")):
        (tmp_path / name).write_text(text)
    for name in ("u.data", "u.data.gz"):
        (tmp_path / name).write_text("1\t1\t3\t881250949\n")
    with pytest.raises(ContractError, match=r"got u\.data and u\.data\.gz: keep one"):
        import_movielens(str(tmp_path), str(tmp_path / "w"), now=NOW)
