import itertools
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.clip_example_gen import sound
from transform.clip_settings import ClipSettings

SMALL = ClipSettings(frames=4, size=16, sound_steps=8, mels=40)
WINDOW = 400  # 25 ms at 16 kHz


def windows(path: str, start: float = 0.0, end: float = 2.0) -> np.ndarray | None:
    with av.open(path) as container:
        return sound.windows(container, SMALL, 0.0, np.linspace(start, end, 5).tolist())


def decibels(samples: np.ndarray) -> np.ndarray:
    return np.frombuffer(sound.LogMel(SMALL)(samples), "<f2").reshape(4, -1, 40).astype(float)


def test_windows_are_spread_evenly_over_the_segments(media):
    # A tone that sounds in the second quarter only: the second segment hears it, the others do not.
    tone = media.sine(440, 2.0)
    tone[:8_000] = tone[16_000:] = 0
    heard = windows(media.write("a.mp4", media.plain([0] * 20), tone=tone))
    assert heard.shape == (4, 8, WINDOW)
    loud = np.abs(heard.astype(float)).mean((1, 2))
    assert loud[1] > 20 * max(loud[0], loud[2], loud[3])
    # Sine of amplitude 0.5 in 16 bits: a mean of 2 / pi of it.
    assert np.abs(heard[1, 2:6].astype(float)).mean() == pytest.approx(0.5 * 2 / np.pi * 32768, rel=0.05)


def test_a_window_in_the_middle_of_a_long_file_is_sought(media):
    tone = np.concatenate([media.sine(300, 20.0), media.sine(3_111, 20.0)])
    path = media.write("a.mp4", media.plain([0] * 400), tone=tone)
    heard = windows(path, 25.0, 26.0).reshape(-1, WINDOW)
    crossings = (np.diff(np.sign(heard.astype(float)), axis=1) != 0).sum(1)
    np.testing.assert_allclose(crossings, 2 * 3_111 * 0.025, atol=2)  # two a period


def test_sound_that_ends_early_is_followed_by_silence(media):
    heard = windows(media.write("a.mp4", media.plain([0] * 20), tone=media.sine(440, 1.0)))
    assert np.abs(heard[:2]).max(initial=0) > 10_000
    assert not heard[3].any()


def test_a_file_without_sound_has_no_windows(media):
    assert windows(media.write("a.mp4", media.plain([0] * 20))) is None


def test_log_mel_matches_a_numpy_oracle():
    """Magnitudes of a Hann-windowed FFT, triangular mel bands (HTK), 20 log10, at most 80 dB below the loudest."""
    samples = np.random.default_rng(0).integers(-9_000, 9_000, (4, 2, WINDOW), np.int16)
    hann = np.hanning(WINDOW + 1)[:-1]
    spectrum = np.abs(np.fft.rfft(samples / 32768.0 * hann, 512))

    def mel(hertz):
        return 1127.0 * np.log1p(np.asarray(hertz) / 700.0)

    edges = np.linspace(mel(20.0), mel(8_000.0), 42)
    bins = mel(np.linspace(0, 8_000.0, 257))[:, np.newaxis]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    weights = np.maximum(0, np.minimum(rising, falling))
    weights[0] = 0  # no band hears the constant
    expected = 20 * np.log10(np.maximum(spectrum @ weights, 1e-5))
    expected = np.maximum(expected, expected.max() - 80)
    np.testing.assert_allclose(decibels(samples), expected, atol=0.1)


def test_a_higher_tone_lights_a_higher_band(media):
    bands = []
    for hertz in (300, 1_000, 4_000):
        path = media.write(f"{hertz}.mp4", media.plain([0] * 20), tone=media.sine(hertz, 2.0))
        bands.append(int(decibels(windows(path))[1].mean(0).argmax()))
    assert bands == sorted(set(bands))


def test_sound_whose_clock_steps_back_keeps_what_was_heard(monkeypatch, media):
    """As in transport streams that were joined: a piece from before the window is no reason to forget the window."""
    path = media.write("a.mp4", media.plain([0] * 20), tone=media.sine(440, 2.0))
    before = windows(path)
    pieces = sound._samples

    def stepping_back(*arguments):
        yield from pieces(*arguments)
        yield -5_000, np.zeros(100, np.int16)

    monkeypatch.setattr(sound, "_samples", stepping_back)
    np.testing.assert_array_equal(windows(path), before)


def test_sound_without_a_decoder_is_no_sound(monkeypatch, media):
    path = media.write("a.mp4", media.plain([0] * 20), tone=media.sine(440, 2.0))
    with av.open(path) as container:
        stream = SimpleNamespace(codec_context=None)
        mute = SimpleNamespace(streams=SimpleNamespace(audio=[stream]), demux=container.demux)
        assert sound.windows(mute, SMALL, 0.0, [0.0, 0.5, 1.0, 1.5, 2.0]) is None


@pytest.mark.parametrize("error", [av.error.PatchWelcomeError(1, "not implemented"), ValueError("no such layout")])
def test_sound_that_fails_costs_no_more_than_the_rest_of_it(monkeypatch, media, error):
    path = media.write("a.mp4", media.plain([0] * 20), tone=media.sine(440, 2.0))
    whole, pieces = windows(path), sound._decoded

    def failing(*arguments):
        for position, samples in pieces(*arguments):
            if position > 16_000:
                raise error
            yield position, samples

    monkeypatch.setattr(sound, "_decoded", failing)
    heard = windows(path)
    np.testing.assert_array_equal(heard[0], whole[0])
    assert not heard[-1].any()
    monkeypatch.setattr(sound, "_decoded", lambda *_: (_ for _ in ()).throw(error))
    assert windows(path) is None


def test_sound_may_change_its_rate_midway(monkeypatch, media):
    """One half at 16 kHz, the other at 48 kHz, as in broadcasts: both are heard, as one tone."""
    tone = media.sine(440, 2.0)
    frames = []
    for number, rate in ((0, 16_000), (1, 48_000)):
        half = np.repeat(tone[number * 16_000 : (number + 1) * 16_000], rate // 16_000)
        frame = av.AudioFrame.from_ndarray((half[np.newaxis] * 32_767).astype(np.int16), "s16", "mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, number * rate, Fraction(1, rate)
        frames.append(frame)
    context = SimpleNamespace(decode=lambda packet: [packet])
    stream = SimpleNamespace(codec_context=context)
    file = SimpleNamespace(streams=SimpleNamespace(audio=[stream]), demux=lambda _: frames)
    heard = sound.windows(file, SMALL, 0.0, [0.0, 0.5, 1.0, 1.5, 2.0])
    loud = np.abs(heard.astype(float)).mean((1, 2))
    np.testing.assert_allclose(loud, loud[0], rtol=0.1)


@given(
    cuts=st.lists(st.integers(1, 40_000), max_size=12), first=st.integers(-3_000, 3_000), seconds=st.floats(0.05, 4.0)
)
def test_windows_are_those_of_the_whole_sound_however_it_comes(cuts, first, seconds):
    """Against an oracle that holds all of it; windows overlap where a clip is short."""
    whole = np.arange(1, 40_001).astype(np.int16)
    bounds = [0, *sorted(set(cuts)), len(whole)]

    def pieces(*_):
        for low, high in itertools.pairwise(bounds):
            yield first + low, whole[low:high]

    times = np.linspace(0, seconds, 5).tolist()
    file = SimpleNamespace(streams=SimpleNamespace(audio=[None]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sound, "_samples", pieces)
        heard = sound.windows(file, SMALL, 0.0, times).reshape(-1, WINDOW)
    centres = (np.arange(32) + 0.5) * seconds / 32
    begins = np.rint(centres * 16_000).astype(int) - WINDOW // 2
    silence = np.zeros(100_000, np.int16)
    dense = silence.copy()
    dense[first + 20_000 : first + 20_000 + len(whole)] = whole
    expected = [dense[20_000 + b - begins[0] : 20_000 + b - begins[0] + WINDOW] for b in begins]
    np.testing.assert_array_equal(heard, expected)
