"""A file that hangs or kills the decoder costs that file only."""

import signal

import numpy as np

from components.clip_example_gen.clip import Clip, read_clip
from components.clip_example_gen.isolation import Decoder
from components.clip_example_gen.video import FaultError
from transform.clip_settings import ClipSettings

SMALL = ClipSettings(frames=2, size=16, sound_steps=2, mels=8, key_frames=1, max_decode_seconds=20)


def test_answers_come_in_order_and_equal_those_of_decoding_here(media):
    paths = [media.write(f"{level}.mp4", media.plain([level] * 10)) for level in (20, 200)]
    decoder = Decoder(SMALL)
    try:
        answers = list(decoder.clips([(paths[0], True), (str(media.folder / "none"), True), (paths[1], False)]))
    finally:
        decoder.close()
    assert answers[0] == read_clip(paths[0], SMALL)
    assert isinstance(answers[1], FaultError)
    assert answers[1].reason == "unreadable path"
    assert answers[2] == read_clip(paths[1], SMALL, with_key_frames=False)


def test_a_decoder_that_hangs_is_ended_and_one_that_dies_is_replaced(media):
    path = media.write("a.mp4", media.plain([9] * 10))
    decoder = Decoder(SMALL.model_copy(update={"max_decode_seconds": 3}))
    try:
        assert isinstance(next(iter(decoder.clips([(path, False)]))), Clip)
        first = decoder._process
        first.send_signal(signal.SIGSTOP)
        hung, after = decoder.clips([(path, False), (path, False)])
        assert (hung.reason, first.returncode) == ("too slow", -signal.SIGKILL)
        assert isinstance(after, Clip)
        decoder._process.kill()
        crashed, after = decoder.clips([(path, False), (path, False)])
        assert (crashed.reason, crashed.detail) == ("decoder crashed", "exit code -9")
        assert isinstance(after, Clip)
    finally:
        decoder.close()


def test_a_decoder_that_dies_within_its_answer_costs_that_file(media):
    noise = np.random.default_rng(0).integers(0, 256, (10, 240, 320, 3), np.uint8)
    path = media.write("a.mp4", noise)
    decoder = Decoder(SMALL.model_copy(update={"frames": 10, "size": 224, "jpeg_quality": 100}))
    try:
        decoder._send((path, False))
        assert decoder._connection.poll(20)  # the answer is longer than the pipe is deep: the rest waits to be read
        decoder._process.kill()
        decoder._process.wait()
        crashed = decoder._receive()
        assert (crashed.reason, crashed.detail) == ("decoder crashed", "exit code -9")
        assert isinstance(next(iter(decoder.clips([(path, False)]))), Clip)
    finally:
        decoder.close()


def test_only_the_length_is_read_where_no_more_is_wanted(media):
    decoder = Decoder(SMALL)
    try:
        paths = [media.write("a.mp4", media.plain([9] * 10)), media.raw("b.mp4", b"?")]
        known, broken = decoder.clips((path, None) for path in paths)
        assert (known.seconds, known.frames) == (1.0, [])
        assert isinstance(broken, FaultError)
    finally:
        decoder.close()


def test_answers_that_nobody_waited_for_do_not_reach_the_next_caller(media):
    paths = [media.write(f"{level}.mp4", media.plain([level] * 10)) for level in (20, 200)]
    decoder = Decoder(SMALL)
    try:
        abandoned = decoder.clips([(paths[0], False)] * 3)
        next(abandoned)
        abandoned.close()
        assert list(decoder.clips([(paths[1], False)])) == [read_clip(paths[1], SMALL, with_key_frames=False)]
    finally:
        decoder.close()
