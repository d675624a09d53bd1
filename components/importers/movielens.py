"""MovieLens as a world of micro-videos: 1M (`*.dat`, complete or a prefix of the ratings) and 100K (`u.*`).

Source: Harper & Konstan, The MovieLens Datasets, TiiS 2015; https://grouplens.org/datasets/movielens/.

Every rating goes in; which ones are positive is the contract's business. `published_at` is the first of January of the
release year (negative before 1970, null where the title has none): unlike the time of the first rating it does not
depend on events. Titles keep their trailing article ("Piano, The"); the year is cut off into `release_year`.
"""

from __future__ import annotations

import io
import re
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from components.importers import sources
from components.importers.summary import ImportSummary, check_and_write
from components.world import files
from transform import contract

_TEXT = pa.string()
_USERS_1M = dict.fromkeys(("user_id", "gender", "age", "occupation", "zip_code"), _TEXT)
_USERS_100K = {"user_id": _TEXT, "age": pa.int64(), "gender": _TEXT, "occupation": _TEXT, "zip_code": _TEXT}
_RATINGS = {"user_id": _TEXT, "video_id": _TEXT, "rating": pa.float64(), "at": pa.int64()}
_AGE_GROUPS = (1, 18, 25, 35, 45, 50, 56)  # those of 1M, by their lower end
_TITLE = r"^(?P<title>.*?)\s*(?:\((?P<year>[0-9]{4})\))?\s*$"
_POSTER = re.compile(r"(?:.*/)?([0-9]+\.jpg)")


def import_movielens(source: str | None, out: str, posters: bool = False, now: int | None = None) -> ImportSummary:
    """Write a world from a MovieLens folder.

    Args:
        source: Folder with users.dat, movies.dat and ratings*.dat (1M, each may be gzipped), or with u.user, u.item,
            u.genre and u.data (100K).
        out: Folder of the world.
        posters: Whether to copy `posters/<movie id>.jpg`, from that folder or `posters*.zip` of the source, to
            `covers/` of the world; `cover_path` is relative to the world.
        now: Unix seconds; the clock where absent.

    Raises:
        ContractError: A file is missing or malformed, or there are several of ratings.
    """
    folder = sources.folder(source, "users.dat, movies.dat and ratings.dat, or u.user, u.item, u.genre and u.data")
    layout = _read_100k if sources.find(folder, "u.data", "u.data.gz") else _read_1m
    users, movies, ratings = layout(folder)
    videos = _videos(movies)
    if posters:
        videos = videos.append_column("cover_path", _copy_posters(folder, out, videos["video_id"].to_pylist()))
    data = {"users": users, "videos": videos, "interactions": ratings.select(["user_id", "video_id", "at", "rating"])}
    return check_and_write(out, contract.load("movielens"), now, _notes(ratings), data)


def _read_1m(folder: str) -> tuple[pa.Table, pa.Table, pa.Table]:
    users = sources.delimited(sources.require(folder, "users.dat", "users.dat.gz"), "::", _USERS_1M)
    path = sources.require(folder, "movies.dat", "movies.dat.gz")
    movies = sources.delimited(path, "::", dict.fromkeys(("video_id", "name", "genres"), _TEXT))
    movies = movies.set_column(2, "tags", pc.split_pattern(movies["genres"], "|"))
    path = sources.only(folder, "ratings*.dat", "ratings*.dat.gz")
    return users, movies, sources.delimited(path, "::", _RATINGS)


def _read_100k(folder: str) -> tuple[pa.Table, pa.Table, pa.Table]:
    users = sources.delimited(sources.require(folder, "u.user"), "|", _USERS_100K)
    years = users["age"].to_numpy()
    group = np.searchsorted(_AGE_GROUPS, years, side="right") - 1
    ages = [str(age) for age in np.take(_AGE_GROUPS, group.clip(0))]
    users = users.set_column(1, "age", pa.array(ages, _TEXT, mask=np.isnan(years)))
    names = sources.delimited(sources.require(folder, "u.genre"), "|", {"name": _TEXT, "index": pa.int64()})
    genres = np.array(names["name"].to_pylist(), dtype=object)
    dates = ("release_date", "video_release_date", "url")
    flags = {f"genre{i}": pa.int64() for i in range(len(genres))}
    columns = {"video_id": _TEXT, "name": _TEXT, **dict.fromkeys(dates, _TEXT), **flags}
    items = sources.delimited(sources.require(folder, "u.item"), "|", columns)
    has = np.stack([items[flag].to_numpy() for flag in flags], axis=1) == 1
    movies = items.select(["video_id", "name"]).append_column("tags", pa.array([genres[row].tolist() for row in has]))
    return users, movies, sources.delimited(sources.only(folder, "u.data", "u.data.gz"), "\t", _RATINGS)


def _videos(movies: pa.Table) -> pa.Table:
    parts = pc.extract_regex(movies["name"], _TITLE).combine_chunks()
    year = pc.if_else(pc.equal(parts.field("year"), ""), pa.scalar(None, _TEXT), parts.field("year"))
    tags = movies["tags"].to_pylist()
    number = pc.cast(year, pa.float64()).to_numpy(zero_copy_only=False)
    known = ~np.isnan(number)
    days = (np.where(known, number, 1970).astype(np.int64) - 1970).astype("datetime64[Y]").astype("datetime64[s]")
    return pa.table(
        {
            "video_id": movies["video_id"],
            "title": parts.field("title"),
            "tags": movies["tags"],
            "primary_category": [row[0] if row else "" for row in tags],
            "secondary_category": [row[1] if len(row) > 1 else "" for row in tags],
            "author_id": [""] * len(tags),
            "release_year": year,
            "published_at": pa.array(days.astype(np.int64), mask=~known),
        }
    )


def _copy_posters(folder: str, out: str, video_ids: list[str]) -> pa.Array:
    """The poster of each movie, null where there is none, as a path relative to the world."""
    wanted = {f"{video_id}.jpg" for video_id in video_ids}
    files.make_folder(files.join(out, "covers"))
    found = files.join(folder, "posters")
    copied = _from_folder(found, out, wanted) if files.is_folder(found) else _from_zip(folder, out, wanted)
    return pa.array([f"covers/{v}.jpg" if f"{v}.jpg" in copied else None for v in video_ids], _TEXT)


def _from_folder(found: str, out: str, wanted: set[str]) -> set[str]:
    copied = wanted & set(files.names(found))
    for name in copied:
        with files.reading(files.join(found, name)) as poster, files.writing(_cover(out, name)) as copy:
            copy.write(poster.read())
    return copied


def _from_zip(folder: str, out: str, wanted: set[str]) -> set[str]:
    path = sources.require(folder, "posters*.zip")
    copied = set()
    try:
        with zipfile.ZipFile(io.BytesIO(sources.content(path))) as archive:
            for entry in archive.namelist():
                match = _POSTER.fullmatch(entry)  # only the bare name is used, so no entry leaves the folder
                if match and match[1] in wanted:
                    copied.add(match[1])
                    with files.writing(_cover(out, match[1])) as copy:
                        copy.write(archive.read(entry))
    except zipfile.BadZipFile as error:
        raise contract.ContractError(f"{path}: not a whole ZIP archive: {error}: download it again") from error
    return copied


def _cover(out: str, name: str) -> str:
    return files.join(files.join(out, "covers"), name)


def _notes(ratings: pa.Table) -> list[str]:
    values, counts = np.unique(ratings["rating"].to_numpy(), return_counts=True)
    return ["ratings: " + ", ".join(f"{value:g}: {count:,}" for value, count in zip(values, counts, strict=True))]
