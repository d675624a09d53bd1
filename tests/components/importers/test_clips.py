import av
import numpy as np
import pyarrow as pa
import pytest

from components.importers import clips
from components.world import check, tables
from transform import contract
from transform.contract import ContractError


def write_video(path, frames=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height = 32, 24
        for _ in range(frames):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((24, 32, 3), np.uint8), "rgb24")))
        container.mux(stream.encode())


@pytest.fixture
def source(tmp_path):
    folder = tmp_path / "UCF-101"
    for name in ("v_Yoyo_g01_c01.avi", "v_Yoyo_g01_c02.avi", "v_Yoyo_g02_c01.avi"):
        write_video(folder / "Yoyo" / name)
    write_video(folder / "Kayak" / "v_Kayak_g01_c01.avi", frames=25)
    (folder / "Kayak" / "broken.mp4").write_bytes(b"")
    (folder / "Kayak" / "notes.txt").write_text("hello")
    (folder / "index.csv").write_text("file,label\n")
    return folder


def test_classes_groups_and_durations_come_from_folders_names_and_headers(source, tmp_path):
    summary = clips.import_clips(str(source), str(tmp_path / "world"))
    rows = tables.read_table(str(tmp_path / "world"), "videos").to_pylist()
    assert [(r["video_id"], r["primary_category"], r["group_id"], r["duration_seconds"]) for r in rows] == [
        ("Kayak/broken.mp4", "Kayak", "Kayak/broken", None),
        ("Kayak/v_Kayak_g01_c01.avi", "Kayak", "Kayak/v_Kayak_g01", 2.5),
        ("Yoyo/v_Yoyo_g01_c01.avi", "Yoyo", "Yoyo/v_Yoyo_g01", 1.0),
        ("Yoyo/v_Yoyo_g01_c02.avi", "Yoyo", "Yoyo/v_Yoyo_g01", 1.0),
        ("Yoyo/v_Yoyo_g02_c01.avi", "Yoyo", "Yoyo/v_Yoyo_g02", 1.0),
    ]
    assert rows[1]["media_path"] == str(source / "Kayak" / "v_Kayak_g01_c01.avi")
    assert summary.rows == {"videos": 5}
    assert summary.rejected == {"videos: the file name is not that of a video": 1}
    assert tables.read_table(summary.world, "rejected")["content"].to_pylist() == ['{"media_path": "Kayak/notes.txt"}']
    assert "2 classes, 4 groups that splits keep together" in summary.notes
    assert summary.notes[1].startswith("1 videos of unknown duration")
    assert summary.notes[1].endswith(": Kayak/broken.mp4")


@pytest.mark.parametrize(
    ("name", "group"),
    [("night-clip3.mp4", "night"), ("fi002.mp4", "fi002"), ("take_2.mp4", "take_2"), ("a_part10.MOV", "a")],
)
def test_only_an_evident_part_number_joins_files(tmp_path, name, group):
    write_video(tmp_path / "source" / "x" / "any.mp4")
    (tmp_path / "source" / "x" / name).write_bytes(b"?")
    clips.import_clips(str(tmp_path / "source"), str(tmp_path / "world"))
    groups = tables.read_table(str(tmp_path / "world"), "videos")["group_id"].to_pylist()
    assert sorted(groups) == sorted(["x/any", f"x/{group}"])


def test_a_folder_without_classes_is_one_clear_error(tmp_path):
    write_video(tmp_path / "a.mp4")
    with pytest.raises(ContractError, match="expected a folder for each class with its videos in it, got none"):
        clips.import_clips(str(tmp_path), str(tmp_path / "world"))


def test_a_world_of_clips_passes_the_check_which_says_what_it_lacks(source, tmp_path):
    world = clips.import_clips(str(source), str(tmp_path / "world")).world
    checked = check.check_world(world, contract.load("microvideo"))
    assert (checked.videos.num_rows, checked.users.num_rows, checked.counts) == (5, 0, {})
    assert checked.notes == [check.CLIPS_ONLY]


def test_the_check_finds_media_that_are_gone(source, tmp_path):
    world = clips.import_clips(str(source), str(tmp_path / "world")).world
    (source / "Kayak" / "broken.mp4").unlink()
    checked = check.check_world(world, contract.load("microvideo"))
    assert checked.counts == {"videos: media_path is not a file": 1}
    assert checked.videos.num_rows == 4


def test_real_clips_are_read(shared_data, tmp_path):
    folder = shared_data / "clips" / "surv-fight"
    if not folder.is_dir():
        pytest.skip(f"no clips at {folder}")
    summary = clips.import_clips(str(folder), str(tmp_path / "world"))
    videos = tables.read_table(summary.world, "videos")
    assert set(videos["primary_category"].to_pylist()) == {"fight", "noFight"}
    assert videos["duration_seconds"].null_count == 0


def test_no_video_is_passed_over_in_silence(source, tmp_path):
    write_video(source / "stray.mp4")
    write_video(source / "Yoyo" / "day 1" / "v_Yoyo_g03_c01.avi")
    (source / "Yoyo" / "more").symlink_to(source / "Kayak")
    (source / "Kayak2").symlink_to(source / "Kayak")
    summary = clips.import_clips(str(source), str(tmp_path / "world"))
    ids = tables.read_table(summary.world, "videos")["video_id"].to_pylist()
    assert "Yoyo/day 1/v_Yoyo_g03_c01.avi" in ids
    groups = dict(zip(ids, tables.read_table(summary.world, "videos")["group_id"].to_pylist(), strict=True))
    assert groups["Yoyo/day 1/v_Yoyo_g03_c01.avi"] == "Yoyo/v_Yoyo_g03"  # wherever its other parts lie
    assert summary.rejected == {
        "videos: a link to a folder": 2,
        "videos: the file name is not that of a video": 1,
        "videos: not in a folder of its class": 1,
    }


def test_tables_of_another_import_are_not_mixed_with_clips(source, tmp_path):
    tables.write_table(str(tmp_path / "world"), "users", pa.table({"user_id": ["u"]}))
    with pytest.raises(ContractError, match="got users of an earlier one"):
        clips.import_clips(str(source), str(tmp_path / "world"))
