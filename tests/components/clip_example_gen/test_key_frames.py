import numpy as np

from components.clip_example_gen.clip import read_clip
from components.clip_example_gen.key_frames import candidate_times
from components.clip_example_gen.video import Video
from transform.clip_settings import ClipSettings

SMALL = ClipSettings(frames=2, size=16, sound_steps=2, mels=8, key_frames=4)


def times(path: str, count: int) -> list[float]:
    with Video(path, SMALL) as video:
        return candidate_times(video, count)


def test_new_shots_come_first_and_the_rest_is_spread_evenly(media):
    # Groups of 12 pictures; the shot changes at 36 (3.6 s) and 48 (4.8 s) of 60.
    path = media.write("a.mp4", media.plain([10] * 36 + [120] * 12 + [240] * 12))
    np.testing.assert_allclose(times(path, 2), [3.6, 4.8], atol=1e-6)
    # Shots of 3.6, 1.2 and 1.2 s: halves of the longest are longer than the others.
    np.testing.assert_allclose(times(path, 3), [1.8, 3.6, 4.8], atol=1e-6)
    np.testing.assert_allclose(times(path, 4), [0.9, 2.7, 3.6, 4.8], atol=1e-6)


def test_one_shot_is_spread_evenly(media):
    np.testing.assert_allclose(times(media.write("a.mp4", media.plain([10] * 40)), 4), [0.5, 1.5, 2.5, 3.5])


def test_one_moment_gives_one_candidate(media):
    clip = read_clip(media.write("a.mp4", media.plain([10, 120, 240])), SMALL)  # three pictures, four candidates
    np.testing.assert_allclose([at for at, _ in clip.key_frames], [0, 0.1, 0.2])


def test_none_are_sought_where_none_are_wanted(media):
    path = media.write("a.mp4", media.plain([10] * 40))
    assert read_clip(path, SMALL, with_key_frames=False).key_frames == []
    assert read_clip(path, SMALL.model_copy(update={"key_frames": 0})).key_frames == []
