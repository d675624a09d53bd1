import numpy as np
import pytest
import tensorflow as tf

from transform import clips
from transform.clip_settings import ClipSettings
from transform.contract import ContractError

SETTINGS = ClipSettings(frames=2, size=8, sound_steps=3, mels=4)


def jpeg(level: int, size: int = 8) -> bytes:
    return tf.io.encode_jpeg(np.full((size, size, 3), level, np.uint8), quality=100).numpy()


def test_frames_of_any_batch_shape_decode_to_their_pixels():
    pixels = clips.decode_frames(tf.constant([[jpeg(0), jpeg(255)], [jpeg(100), jpeg(7)]]), SETTINGS)
    assert pixels.shape == (2, 2, 8, 8, 3)
    np.testing.assert_allclose(pixels[..., 0, 0, 0], [[0, 255], [100, 7]], atol=1)
    alone = clips.decode_frames(tf.constant([jpeg(100), jpeg(7)]), SETTINGS)
    np.testing.assert_array_equal(alone, pixels[1])


def test_a_frame_of_another_size_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError):
        clips.decode_frames(tf.constant([jpeg(0), jpeg(0, size=9)]), SETTINGS)


def test_flow_of_the_middle_byte_is_no_motion_and_of_the_last_the_largest():
    flow = clips.decode_flow(tf.constant([jpeg(255), jpeg(127)]), SETTINGS)
    np.testing.assert_allclose(flow[:, 0, 0], [[1, 1], [0, 0]], atol=0.02)  # 255 / 127.5 - 1, 127 / 127.5 - 1


def test_sound_is_scaled_and_missing_sound_is_zero_and_masked():
    decibels = np.linspace(-100, 40, 24).reshape(2, 3, 4)
    stored = tf.constant([decibels.astype("<f2").tobytes(), b""])
    sound, present = clips.decode_sound(stored, SETTINGS)
    np.testing.assert_array_equal(present, [True, False])
    np.testing.assert_allclose(sound[0], np.linspace(-1, 1, 24).reshape(2, 3, 4), atol=1e-3)
    np.testing.assert_array_equal(sound[1], np.zeros((2, 3, 4)))
    alone, here = clips.decode_sound(stored[0], SETTINGS)
    np.testing.assert_array_equal(alone, sound[0])
    assert bool(here)


def test_sound_of_the_wrong_length_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError):
        clips.decode_sound(tf.constant([bytes(10)]), SETTINGS)


def test_flow_is_parsed_only_where_the_settings_ask_for_it():
    assert clips.FLOW not in clips.parse_spec(SETTINGS)
    assert clips.parse_spec(SETTINGS.model_copy(update={"flow": True}))[clips.FLOW].shape == [2]


def test_settings_survive_json():
    settings = ClipSettings(frames=5, sampling="consecutive", sampling_fps=7.5)
    assert ClipSettings.from_json(settings.to_json()) == settings


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"frame": 3}', "did you mean 'frames'?"),
        ('{"frames": 0}', "frames: Input should be greater than or equal to 1, got 0"),
        ("[", "clip settings, the whole: Invalid JSON"),
    ],
)
def test_wrong_settings_are_named(text, said):
    with pytest.raises(ContractError) as error:
        ClipSettings.from_json(text)
    assert said in str(error.value)
