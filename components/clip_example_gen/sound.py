"""Sound: windows of samples by PyAV, and their log-mel spectrograms by tensorflow-io.

T segments of a clip, P windows of `WINDOW_SECONDS` in each, evenly spaced (they overlap in short segments and leave
gaps in long ones, so that the cost does not grow with the clip), M mel bands.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

import av
import numpy as np
import numpy.typing as npt

from transform.clip_settings import ClipSettings

WINDOW_SECONDS = 0.025
LOWEST_HERTZ = 20.0
DYNAMIC_RANGE = 80.0  # decibels below the loudest that are kept

Samples = npt.NDArray[np.int16]


def window_size(settings: ClipSettings) -> int:
    """W, samples in a window."""
    return round(WINDOW_SECONDS * settings.sound_rate)


def windows(container: Any, settings: ClipSettings, start: float, segments: Sequence[float]) -> Samples | None:
    """The samples that the spectrograms are made from.

    Args:
        container: An open file, at its start.
        settings: Gives T, P and the rate.
        start: Time of the first picture, in the container's clock.
        segments: T + 1 times, seconds from the first picture, equally far apart: the bounds of the segments.

    Returns:
        int16 [T, P, W], one channel, 0 where the sound has begun late or ended early; None where there is no sound.
    """
    if not container.streams.audio:
        return None
    rate, size = settings.sound_rate, window_size(settings)
    steps = settings.frames * settings.sound_steps
    centres = segments[0] + (np.arange(steps) + 0.5) * (segments[-1] - segments[0]) / steps
    firsts = np.rint(centres * rate).astype(np.int64) - size // 2
    offset = int(firsts[0])
    begins, heard, found = firsts - offset, np.zeros((steps, size), np.int16), False
    for position, samples in _samples(container, rate, start, offset):
        found, end = True, position + len(samples)
        # Only the windows that the piece reaches into: the sound of an hour is never held as a whole.
        for window in range(*np.searchsorted(begins, (position - size + 1, end))):
            low, high = max(begins[window], position), min(begins[window] + size, end)
            heard[window, low - begins[window] : high - begins[window]] = samples[low - position : high - position]
        if position > begins[-1] + size:
            break
    return heard.reshape(settings.frames, settings.sound_steps, -1) if found else None


def _samples(container: Any, rate: int, start: float, offset: int) -> Iterator[tuple[int, Samples]]:
    """Pieces of the first audio stream, resampled, each with its position after `offset` (both in samples).

    Sound that cannot be decoded ends there, or is none: it costs no clip.
    """
    stream = container.streams.audio[0]
    if stream.codec_context is None:  # FFmpeg knows the format and has no decoder for it
        return
    try:
        yield from _decoded(container, stream, rate, start, offset)
    except (av.FFmpegError, ValueError) as error:
        logging.getLogger(__name__).warning("%s: the sound ends early: %r", container.name, error)


def _decoded(container: Any, stream: Any, rate: int, start: float, offset: int) -> Iterator[tuple[int, Samples]]:
    if offset > rate:
        container.seek(round((start + offset / rate - 1) * av.time_base))
    resampler, form = None, None
    position = 0
    for packet in container.demux(stream):
        try:
            decoded = stream.codec_context.decode(packet)
        except av.InvalidDataError:
            continue
        for whole in decoded:
            if resampler is None or form != (whole.format.name, whole.layout.name, whole.rate):  # it may change midway
                resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
                form = whole.format.name, whole.layout.name, whole.rate
            for frame in resampler.resample(whole):
                if frame.time is not None:
                    position = round((frame.time - start) * rate) - offset
                samples = frame.to_ndarray()[0]
                yield position, samples
                position += len(samples)


class LogMel:
    """The spectrograms of a clip's windows, as they are stored.

    Args:
        settings: Gives P, M and the rate.
    """

    def __init__(self, settings: ClipSettings) -> None:
        self._settings = settings
        self._compute: Any = None

    def __call__(self, samples: Samples) -> bytes:
        """int16 [T, P, W] as float16 [T, P, M], little-endian, decibels."""
        self._compute = self._compute or _spectrogram(self._settings, window_size(self._settings))
        flat = samples.reshape(len(samples), -1).astype(np.float32) / 32768.0
        return bytes(self._compute(flat).numpy().astype("<f2").tobytes())


def _spectrogram(settings: ClipSettings, size: int) -> Any:
    """float32 [T, P x W] -> [T, P, M]; the stride is the window, so that each window of `windows` is one step.

    Made when there is sound: tensorflow-io is slow to import.
    """
    import tensorflow as tf
    import tensorflow_io as tfio

    bins = 1 << (size - 1).bit_length()

    @tf.function(input_signature=[tf.TensorSpec([None, None], tf.float32)])
    def compute(flat: tf.Tensor) -> tf.Tensor:
        spectrum = tfio.audio.spectrogram(flat, nfft=bins, window=size, stride=size)
        bands = tfio.audio.melscale(
            spectrum, rate=settings.sound_rate, mels=settings.mels, fmin=LOWEST_HERTZ, fmax=settings.sound_rate / 2
        )
        return tfio.audio.dbscale(bands, top_db=DYNAMIC_RANGE)

    return compute
