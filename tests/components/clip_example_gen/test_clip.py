"""Which moments of a file a clip holds, how its pictures come out, and which files give none."""

import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
import tensorflow as tf

from components.clip_example_gen.clip import read_clip, segments
from components.clip_example_gen.video import FaultError, Video
from transform.clip_settings import ClipSettings

SMALL = ClipSettings(frames=4, size=16, sound_steps=2, mels=8, key_frames=2, jpeg_quality=100)


def pixels(jpeg: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)


def levels(frames: list[bytes]) -> list[float]:
    return [float(pixels(frame).mean()) for frame in frames]


def test_uniform_frames_are_those_shown_in_the_middles_of_equal_parts(media):
    clip = read_clip(media.write("a.mp4", media.plain(range(0, 200, 10))), SMALL)
    # 20 pictures at 10 a second: parts of 0.5 s, middles 0.25, 0.75, ...; picture 2 is shown from 0.2 to 0.3.
    np.testing.assert_allclose(clip.times, [0.2, 0.7, 1.2, 1.7])
    np.testing.assert_allclose(levels(clip.frames), [20, 70, 120, 170], atol=2)
    assert clip.seconds == pytest.approx(2.0)


def test_consecutive_frames_come_from_the_middle_at_the_sampling_rate(media):
    settings = SMALL.model_copy(update={"sampling": "consecutive", "sampling_fps": 5.0})
    clip = read_clip(media.write("a.mp4", media.plain(range(0, 200, 10))), settings)
    # A window of 0.8 s around 1.0: parts of 0.2 s from 0.6, middles 0.7, 0.9, ...
    np.testing.assert_allclose(clip.times, [0.7, 0.9, 1.1, 1.3])


def test_a_file_shorter_than_the_window_is_spread_over():
    settings = SMALL.model_copy(update={"sampling": "consecutive", "sampling_fps": 5.0})
    np.testing.assert_allclose(segments(0.4, settings), [0, 0.1, 0.2, 0.3, 0.4])


def test_a_file_with_fewer_frames_than_the_clip_repeats_them(media):
    clip = read_clip(media.write("a.mp4", media.plain([9, 90])), SMALL)
    np.testing.assert_allclose(levels(clip.frames), [9, 9, 90, 90], atol=2)
    assert len(clip.times) == 4


def test_frames_have_the_size_and_show_the_middle(media):
    picture = np.zeros((32, 64, 3), np.uint8)
    picture[:, 16:48] = 200  # the middle square; black left and right of it
    clip = read_clip(media.write("a.mp4", [picture] * 4), SMALL)
    assert pixels(clip.frames[0]).shape == (16, 16, 3)
    np.testing.assert_allclose(pixels(clip.frames[0])[:, 1:-1], 200, atol=4)


def test_colours_keep_their_order(media):
    red = np.zeros((48, 64, 3), np.uint8)
    red[..., 0] = 255
    clip = read_clip(media.write("a.mp4", [red] * 4), SMALL)
    blue, green, most = pixels(clip.frames[0]).mean((0, 1))  # OpenCV: BGR
    assert most > 240
    assert blue < 15
    assert green < 15


def test_rotation_of_the_metadata_is_applied(media):
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:, :32] = 250  # bright left; turned a quarter counterclockwise, the left is at the bottom
    clip = read_clip(media.write("a.mp4", [picture] * 4, turn=90), SMALL)
    rows = pixels(clip.frames[0]).mean((1, 2))
    assert rows[0] < 10
    assert rows[-1] > 240


@pytest.mark.parametrize("size", [(1, 1), (33, 17), (2, 400)])
def test_odd_sizes_are_decoded(media, size):
    clip = read_clip(media.write("a.avi", media.plain([0, 100, 200], size), codec="ffv1", pixels="bgr0"), SMALL)
    np.testing.assert_allclose(levels(clip.frames), [0, 100, 100, 200], atol=1)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.avi", "mpeg4"), ("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.h264", "libx264"), ("a.mpg", "mpeg2video")],
)
def test_frames_of_any_container_are_those_of_their_times(media, name, codec):
    clip = read_clip(media.write(name, media.plain(range(0, 250, 5)), rate=25, codec=codec), SMALL)
    assert 1.6 <= clip.seconds <= 2.1  # 50 pictures; headers of some containers are not exact
    np.testing.assert_allclose(clip.times, (np.arange(4) + 0.5) * clip.seconds / 4, atol=0.041)  # a frame takes 0.04 s
    np.testing.assert_allclose(levels(clip.frames), 5 * 25 * np.array(clip.times), atol=4)  # 5 a frame


@pytest.mark.parametrize(("name", "codec"), [("a.mkv", "libx264"), ("a.flv", "flv1"), ("a.nut", "mpeg4")])
def test_a_clip_is_as_long_as_its_pictures_where_the_sound_is_longer(media, name, codec):
    """Of these containers the header tells the length of the file, not of a stream."""
    clip = read_clip(media.write(name, media.plain(range(0, 200, 10)), codec=codec, tone=media.sine(440, 9.0)), SMALL)
    assert clip.seconds == pytest.approx(2.0, abs=0.01)
    np.testing.assert_allclose(clip.times, [0.2, 0.7, 1.2, 1.7], atol=0.01)  # shown at .25, .75, 1.25 and 1.75 s


def test_a_last_picture_that_is_held_is_shown_to_the_end(media):
    """As in slide shows and recordings of screens: 2 s of pictures, of which the last stands for 4 s more."""
    path = str(media.folder / "held.mp4")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt, stream.options = 64, 48, "yuv420p", {"qp": "10", "bf": "0"}
        packets = []
        for index, picture in enumerate(media.plain(range(0, 200, 10))):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            packets += stream.encode(frame)
        packets += stream.encode()
        packets[-1].duration = round(4.1 / packets[-1].time_base)
        for packet in packets:
            container.mux(packet)
    clip = read_clip(path, SMALL)
    assert clip.seconds == pytest.approx(6.0, abs=0.11)
    np.testing.assert_allclose(clip.times, [0.7, 1.9, 1.9, 1.9], atol=0.11)  # shown at .75, 2.25, 3.75 and 5.25 s


def test_the_decoder_itself_refuses_pictures_that_grow_above_the_limit(media):
    """Before it takes memory for them: a raw stream of small pictures that goes on with large ones."""
    parts = [media.write(f"{width}.h264", media.plain([0] * 10, (width, 48))) for width in (64, 6400)]
    path = media.raw("both.h264", b"".join(Path(part).read_bytes() for part in parts))
    with Video(path, SMALL.model_copy(update={"max_pixels": 64 * 48})) as video:
        assert len(list(video._frames())) == 10
    exact = media.write("exact.mp4", media.plain([0] * 10, (72, 128)))  # FFmpeg takes memory for 96 x 128
    assert len(read_clip(exact, SMALL.model_copy(update={"max_pixels": 72 * 128})).frames) == 4
    with Video(path, SMALL) as video:
        assert {frame.width for _, frame in video._frames()} == {64, 6400}


def test_a_remote_file_gives_the_same_clip(media):
    path = media.write("a.mp4", media.plain(range(0, 200, 10)), tone=media.sine(440, 2.0))
    tf.io.gfile.copy(path, "ram://clips/a.mp4", overwrite=True)
    local, remote = read_clip(path, SMALL), read_clip("ram://clips/a.mp4", SMALL)
    assert remote.frames == local.frames
    np.testing.assert_array_equal(remote.windows, local.windows)


@pytest.mark.parametrize(
    ("name", "codec"), [("a.ts", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4"), ("a.h264", "libx264")]
)
def test_frames_of_a_long_file_are_those_of_their_times(media, name, codec):
    """Whether the container has an index or not: the levels rise by 10 a frame, over and over."""
    path = media.write(name, media.plain(range(0, 250, 10)), rate=25, codec=codec, repeat=60)
    clip = read_clip(path, SMALL)
    np.testing.assert_allclose(clip.times, (np.arange(4) + 0.5) * clip.seconds / 4, atol=0.041)
    expected = np.rint(np.array(clip.times) * 25) % 25 * 10
    np.testing.assert_allclose(levels(clip.frames), expected, atol=4)


def test_pictures_out_of_order_are_shown_in_order(media):
    """H.264 with B-frames in AVI, whose time stamps are those of decoding: each picture as FFmpeg shows it."""
    path = str(media.folder / "a.avi")
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.options = {"bf": "2", "qp": "10", "g": "12", "preset": "fast"}
        for index, picture in enumerate(media.plain(range(0, 250, 2))):
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    clip = read_clip(path, SMALL.model_copy(update={"frames": 8}))
    np.testing.assert_allclose(clip.times, (np.arange(8) + 0.5) * 5 / 8, atol=0.13)
    # 2 a frame, two frames late as B-frames of this container are: every picture is the one of its time, in order.
    np.testing.assert_allclose(levels(clip.frames)[1:], 2 * (25 * np.array(clip.times) - 2)[1:], atol=3)


def test_a_long_file_is_sought_not_decoded_throughout(media):
    path = media.write("a.mp4", media.plain(range(0, 250, 10)), rate=25, repeat=40)
    with Video(path, SMALL) as video:
        shown = [at for at, _, _ in video.at([5.0, 15.0, 25.0, 35.0])]
    np.testing.assert_allclose(shown, [5, 15, 25, 35])
    assert video.decoded <= 4 * 26  # of 1000: at most a group of pictures for each


def test_optical_flow_points_where_the_picture_moves(media):
    texture = np.random.default_rng(0).integers(0, 255, (16, 24, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    pictures = [np.roll(texture, 4 * index, axis=1)[:, 32:160] for index in range(8)]  # 4 pixels right a frame
    settings = SMALL.model_copy(update={"size": 128, "flow": True})
    flow = pixels(read_clip(media.write("a.mp4", pictures), settings).flow[1])[48:80, 48:80].astype(float)
    still, down, right = flow.mean((0, 1))
    np.testing.assert_allclose([right, down, still], [127.5 + 4 / 20 * 127.5, 127.5, 128], atol=3)


def test_one_decoding_keeps_no_frames_in_memory(media):
    """Ten minutes of 1080p may take at most 200 MB more than two seconds: the bound of the specification."""
    pictures = media.plain(range(0, 240, 20), (1920, 1080))
    short, long = (
        media.write(f"{n}.mp4", pictures, rate=25, repeat=n, tone=media.sine(440, n * 0.48)) for n in (4, 1250)
    )
    code = (
        "import resource, sys; from components.clip_example_gen.clip import read_clip; "
        "from transform.clip_settings import ClipSettings; read_clip(sys.argv[1], ClipSettings()); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    peaks = [
        int(subprocess.run([sys.executable, "-c", code, path], env=environment, check=True, capture_output=True).stdout)
        for path in (short, long)
    ]
    assert peaks[1] - peaks[0] < 200


def broken(media, name: str) -> str:
    good = media.write("good.mp4", media.plain(range(0, 250, 2)), tone=media.sine(440, 2.0))
    match name:
        case "missing":
            return str(media.folder / "nowhere.mp4")
        case "folder":
            return str(media.folder)
        case "pipe":
            os.mkfifo(media.folder / "pipe.mp4")
            return str(media.folder / "pipe.mp4")
        case "empty":
            return media.raw("empty.mp4", b"")
        case "text":
            return media.raw("text.txt", b"not a video\n" * 40)
        case "noise":
            return media.raw("noise.mp4", np.random.default_rng(0).bytes(9000))
        case "list of files":
            return media.raw("list.m3u8", b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\ngood.mp4\n#EXT-X-ENDLIST\n")
        case "truncated mp4":
            return media.cut("cut.mp4", good, 0.5)
        case "truncated mkv":
            return media.cut("cut.mkv", media.write("good.mkv", media.plain(range(250))), 0.5)
        case "truncated flv":  # its header tells one length for pictures and sound
            sounding = media.write("good.flv", media.plain(range(80)), codec="flv1", tone=media.sine(440, 8.0))
            return media.cut("cut.flv", sounding, 0.5)
        case "truncated avi":
            return media.cut("cut.avi", media.write("good.avi", media.plain(range(250)), codec="mpeg4"), 0.3)
        case "sound only":
            return media.write("sound.m4a", tone=media.sine(440, 1.0))
        case "picture":
            return media.raw("picture.png", cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes())
        case "drawing":
            return media.raw("drawing.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'></svg>")
        case "one frame":
            return media.write("one.mp4", media.plain([7]))
        case "absurd rate":
            return media.write("fast.mp4", media.plain(range(10)), rate=60_000)
        case "bomb":
            return media.write("bomb.mp4", media.plain([0, 1], (2000, 2000)))
        case "bomb without header":
            return media.write("bomb.avi", media.plain([0, 1], (2000, 2000)), codec="ffv1", pixels="bgr0")
    return good


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "unreadable path"),
        ("folder", "unreadable path"),
        ("pipe", "unreadable path"),
        ("empty", "empty file"),
        ("text", "not a video"),
        ("noise", "not a video"),
        ("list of files", "not a video"),
        ("truncated mp4", "not a video"),  # its index is at the end
        ("truncated mkv", "truncated"),
        ("truncated avi", "truncated"),
        ("truncated flv", "truncated"),
        ("sound only", "no video stream"),
        ("picture", "one frame"),
        ("drawing", "no decoder"),
        ("one frame", "one frame"),
        ("absurd rate", "implausible frame rate"),
        ("bomb", "frame too large"),
        ("bomb without header", "no frame size"),
    ],
)
def test_a_broken_file_is_refused_for_its_reason(media, name, reason):
    with pytest.raises(FaultError) as error:
        read_clip(broken(media, name), SMALL.model_copy(update={"max_pixels": 1_000_000}))
    assert error.value.reason == reason


def test_pictures_that_grow_midway_are_refused_where_they_do(media):
    """Whatever the header says, and whatever FFmpeg made of its limit: by the pictures themselves."""
    limits = SMALL.model_copy(update={"max_pixels": 64 * 48})
    with Video(media.write("a.mp4", media.plain([0] * 20)), limits) as video:
        pictures = [av.VideoFrame(64, 48, "rgb24"), av.VideoFrame(64, 50, "rgb24")]
        video._stream = SimpleNamespace(codec_context=SimpleNamespace(decode=lambda _: pictures), average_rate=10)
        decoded = video._decode(None)
        assert next(decoded)[1] is pictures[0]
        with pytest.raises(FaultError, match="64 x 50 above 3072 pixels"):
            next(decoded)


@pytest.mark.parametrize(
    ("limit", "reason"), [({"max_seconds": 9}, "too long"), ({"max_frames": 99}, "too many frames")]
)
def test_limits_refuse_files_above_them(media, limit, reason):
    path = broken(media, "good")  # 125 frames in 12.5 s
    assert read_clip(path, SMALL).seconds == pytest.approx(12.5)
    with pytest.raises(FaultError) as error:
        read_clip(path, SMALL.model_copy(update=limit))
    assert error.value.reason == reason


def test_a_damaged_stretch_does_not_cost_the_clip(media):
    path = media.write("a.avi", media.plain(range(100)), codec="mpeg4")
    content = bytearray(Path(path).read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200] = np.random.default_rng(0).bytes(200)
    assert len(read_clip(media.raw("b.avi", bytes(content)), SMALL).frames) == 4
