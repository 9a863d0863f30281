"""Video files -> frames: presentation times from the packets, seeks instead of whole files, rotation, damage.

Only the video files here know PyAV. What cannot be used is a :class:`ScanError` with one reason.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from voco.data.video_frames import CHANNELS, Converter, orientation
from voco.data.video_streams import open_video, say_streams
from voco.errors import InputError, ScanError
from voco.short_repr import short_repr

_RAW = (".h264", ".264", ".h265", ".265", ".hevc")  # streams without a container
SUFFIXES = frozenset(_RAW) | frozenset(
    f".{name}"
    for name in "mp4 m4v mov avi mkv webm mpg mpeg ts m2ts mts flv wmv asf 3gp 3g2 ogv vob divx".split()  # noqa: SIM905
)
# Tried: after a seek, these give frames their true times. MPEG program streams do not.
_SEEKABLE = ("mov", "matroska", "avi", "mpegts", "flv", "asf")
_RATE = 25.0  # frames per second where nothing says it, as FFmpeg has it
_WORTH_A_SEEK = 8  # frames that a seek must save: below, decoding on is as fast


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds, measured from its packets and its first frame, not from its header.

    Attributes:
        frames: number of frames.
        fps: mean frames per second; with a variable rate, the rate at no particular moment.
        duration_s: from the first frame to the end of the last one, in seconds.
        size: (H, W) in pixels as shown, after rotation.
        rotation: degrees counter-clockwise that were needed to show it; mirrored files count as their rotation.
        keyframes: frames at which decoding can start.
        codec: as FFmpeg names it.
        synthetic: whether it was drawn; see ``voco.data.synthetic``.
        note: what a user should know of how it is read; mostly empty.
    """

    frames: int
    fps: float
    duration_s: float
    size: tuple[int, int]
    rotation: int
    keyframes: int
    codec: str
    note: str = ""
    synthetic: bool = False


@short_repr
@dataclass(frozen=True)
class FrameIndex:
    """When each frame is shown.

    Attributes:
        pts: presentation times in units of the stream, ascending.
        times_s: the same in seconds from the first frame.
        keys: whether decoding can start at that frame.
        targets: time to seek to so as to reach that frame, if it is a key: presentation or decoding time, as the
            demuxer of the format expects.
        in_order: the file holds no true presentation times; frames are numbered as they leave the decoder.
        seekable: times are right after a seek; else decoding starts with the file.
        stream: number of the stream among all of the file.
        timed: the file has times that tell its frames apart; else frames follow one another at its nominal rate.
        shown: (H, W) of the first frame after rotation, once ``VideoReader.info`` has looked at it.
    """

    pts: np.ndarray
    times_s: np.ndarray
    keys: np.ndarray
    targets: np.ndarray
    in_order: bool = False
    seekable: bool = True
    stream: int | None = None
    timed: bool = True
    shown: tuple[int, int] | None = None

    @property
    def step_s(self) -> float:
        """Usual time between two frames in seconds."""
        return float(np.median(np.diff(self.times_s))) if len(self.times_s) > 1 else 0.0

    @property
    def duration_s(self) -> float:
        """From the first frame to the end of the last one; a lone frame lasts no time."""
        return float(self.times_s[-1]) + self.step_s

    def nearest(self, times_s: np.ndarray) -> np.ndarray:
        """Numbers of the frames whose presentation times are nearest; the earlier one where two are equally near."""
        right = np.searchsorted(self.times_s, times_s).clip(1, max(1, len(self.times_s) - 1))
        right = np.minimum(right, len(self.times_s) - 1)
        left = np.maximum(right - 1, 0)
        nearer_left = times_s - self.times_s[left] <= self.times_s[right] - times_s
        return np.where(nearer_left, left, right)


class VideoReader:
    """One open video file; a context manager. Open it in the process that reads: decoders do not survive a fork.

    Args:
        path: a file.
        index: of an earlier reader of the same file; spares reading all packets once more.

    Attributes:
        index: when each frame is shown.
        decoded: frames decoded so far.
        damaged: packets that could not be read or decoded so far.

    Raises:
        ScanError: no video that can be used.
    """

    def __init__(self, path: str | Path, index: FrameIndex | None = None):
        self.path, self.decoded, self.damaged = Path(path), 0, 0
        self._container, self._stream = open_video(self.path, index and index.stream)
        try:
            self.index = index or self._read_index()
            self._in_order = self.index.in_order
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._container.close()

    def info(self) -> VideoInfo:
        """Describe the file; decodes its first frame.

        Raises:
            ScanError: not a single frame can be decoded.
        """
        try:
            _, frame = next(self._decode(0), (None, None))
        except _WrongTimes:
            self._in_order = True
            _, frame = next(self._decode(0), (None, None))
        if frame is None:
            raise ScanError(f"no frame of its {len(self.index.times_s)} can be decoded")
        swap, flip_y, _ = orientation(frame, self._stream)
        height, width = (frame.width, frame.height) if swap else (frame.height, frame.width)
        self.index = replace(self.index, shown=(height, width))
        step = self.index.step_s
        count, duration = len(self.index.times_s), self.index.duration_s
        return VideoInfo(
            frames=count,
            fps=count / duration if step > 0 else 0.0,
            duration_s=duration,
            size=(height, width),
            rotation=(90 if flip_y else 270) if swap else (180 if flip_y else 0),
            keyframes=int(self.index.keys.sum()),
            codec=self._stream.codec_context.name,
            note=self._note(),
        )

    def _note(self) -> str:
        streams = say_streams(self._container, self._stream)
        rate = f"no times: taken as {1 / self.index.step_s:.4g} frames per second" if self.index.step_s else ""
        return "; ".join(filter(None, (streams, "" if self.index.timed else rate)))

    def read(
        self, indices: Sequence[int] | np.ndarray, *, size: int | tuple[int, int] | None = None, colour: str = "rgb"
    ) -> np.ndarray:
        """Decode chosen frames, in any order and with repeats.

        Decoding starts at the keyframe before a wanted frame and jumps to a later one where that saves work. A frame
        that is damaged is replaced by the one shown before it.

        Args:
            indices: numbers of frames in order of presentation, T of them.
            size: short side of the result in pixels, or its (H, W), or None for the size as stored. FFmpeg's area
                average where the image shrinks, bilinear where it grows.
            colour: ``"rgb"`` or ``"gray"`` (luma, full range).

        Returns:
            (T, H, W, C) uint8, as shown, that is after rotation.

        Raises:
            ScanError: none of the frames can be decoded.
        """
        if colour not in CHANNELS:
            raise InputError(f"unknown colour {colour!r}; expected one of {', '.join(CHANNELS)}")
        indices = np.asarray(indices, np.int64)
        wanted = np.unique(indices)
        if not len(wanted) or wanted[0] < 0 or wanted[-1] >= len(self.index.times_s):
            raise InputError(f"frames {indices.tolist()} are wanted of a video with {len(self.index.times_s)} frames")
        convert = Converter(self._stream, size, colour, self.index.shown)
        try:
            found = self._pick(wanted, convert)
        except _WrongTimes:
            self._in_order = True
            found = self._pick(wanted, convert)
        return np.stack([found[int(i)] for i in indices])

    def _pick(self, wanted: np.ndarray, convert: Converter) -> dict[int, np.ndarray]:
        pts, keys = self.index.pts, np.flatnonzero(self.index.keys)
        key_of = keys[np.maximum(np.searchsorted(keys, wanted, side="right") - 1, 0)] if len(keys) else wanted * 0
        found: dict[int, np.ndarray] = {}
        todo, from_start = 0, self._in_order or not self.index.seekable
        while todo < len(wanted):
            first = 0 if from_start else int(key_of[todo])
            previous, jumped = None, False
            for time, frame in self._decode(first):
                if previous is None and first > 0 and time > pts[wanted[todo]]:
                    break  # the seek went too far, or the keyframe is damaged: only decoding from the start is sure
                while todo < len(wanted) and pts[wanted[todo]] <= time:
                    exact = pts[wanted[todo]] == time
                    found[int(wanted[todo])] = convert(frame if exact or previous is None else previous)
                    todo += 1
                if todo == len(wanted):
                    return found
                previous = frame
                here = int(np.searchsorted(pts, time))
                # Never to the key that the last seek was meant for: a demuxer that stops earlier would do so again.
                if not from_start and key_of[todo] > first and key_of[todo] - here > _WORTH_A_SEEK:
                    jumped = True
                    break
            if jumped:
                continue
            if previous is not None:  # the file ends sooner than its packets promised
                found |= {int(i): convert(previous) for i in wanted[todo:]}
                return found
            if first == 0:
                if not found:
                    raise ScanError("none of the wanted frames can be decoded")
                last = found[max(found)]
                return found | {int(i): last for i in wanted[todo:]}
            from_start = True
        return found

    def _decode(self, first: int) -> Iterator[tuple[int, object]]:
        """Frames from a keyframe on, in order of presentation, with their presentation times in stream units."""
        import av

        self._go_to(first)
        last, count = None, 0
        for packet in self._packets():
            try:
                frames = packet.decode()
            except (av.error.FFmpegError, ValueError):
                self.damaged += 1
                continue
            for frame in frames:
                self.decoded += 1
                if self._in_order:
                    yield int(self.index.pts[min(count, len(self.index.pts) - 1)]), frame
                    count += 1
                    continue
                if frame.pts is None or (last is not None and frame.pts < last):
                    if self.damaged == 0:
                        raise _WrongTimes
                    continue
                if frame.pts != last:
                    last = frame.pts
                    yield last, frame

    def _go_to(self, first: int) -> None:
        import av

        if self.index.seekable:
            try:
                self._container.seek(int(self.index.targets[first]), stream=self._stream)
                return
            except av.error.FFmpegError:
                pass  # a damaged table of contents; from the start it always goes
        self.close()
        self._container, self._stream = open_video(self.path, self.index.stream)

    def _packets(self) -> Iterator:
        import av

        try:
            yield from self._container.demux(self._stream)
        except av.error.FFmpegError:
            self.damaged += 1

    def _read_index(self) -> FrameIndex:
        """Presentation times of all packets; nothing is decoded, and headers, which may be wrong, are not asked."""
        packets = [p for p in self._packets() if p.size and not p.is_discard]
        if not packets:
            raise ScanError("its video stream holds no frames")
        if sum(p.pts is None and p.dts is None for p in packets) > len(packets) / 2:
            return self._untimed_index(packets)
        decoded_at = [p.dts for p in packets if p.dts is not None]
        if any(later < earlier for earlier, later in pairwise(decoded_at)):  # recordings put one behind the other
            return self._untimed_index(packets)
        # Where only some packets have a presentation time, decoding times (one each, ascending) are the better guess.
        by_pts = all(p.pts is not None for p in packets)
        by_shown = any(name in self._container.format.name for name in ("mov", "matroska"))
        keys: dict[int, bool] = {}
        targets: dict[int, int] = {}
        for number, packet in enumerate(packets):
            time = packet.pts if by_pts else packet.dts
            time = number if time is None else time
            keys[time] = keys.get(time, False) or packet.is_keyframe
            target = time if packet.dts is None or by_shown else packet.dts
            targets[time] = min(target, targets.get(time, target))
        pts = sorted(keys)
        targets[pts[0]] = min(pts[0], min(targets.values()))
        # AVI stores no presentation times. Where frames are stored in another order than shown, only the order in which
        # they leave the decoder is right, and only from the start.
        in_order = self._container.format.name == "avi" and any(p.pts != p.dts for p in packets)
        return FrameIndex(
            pts=np.array(pts, np.int64),
            times_s=(np.array(pts) - pts[0]) * float(self._stream.time_base),
            keys=np.array([keys[time] for time in pts], bool),
            targets=np.array([targets[time] for time in pts], np.int64),
            in_order=in_order,
            seekable=any(name in self._container.format.name for name in _SEEKABLE),
            stream=self._stream.index,
        )

    def _untimed_index(self, packets: Sequence) -> FrameIndex:
        """Frames one after another at the nominal rate: raw streams (H.264, HEVC) hold no such times."""
        unit = float(self._stream.time_base)
        lengths = [p.duration for p in packets if p.duration]
        step = int(np.median(lengths)) if lengths else max(1, round(1 / (_RATE * unit)))
        pts = np.arange(len(packets), dtype=np.int64) * step
        return FrameIndex(
            pts=pts, times_s=pts * unit, keys=np.array([p.is_keyframe for p in packets], bool), targets=pts,
            in_order=True, seekable=False, stream=self._stream.index, timed=False,
        )  # fmt: skip


class _WrongTimes(Exception):
    """Frames leave the decoder in another order than their times say."""


def probe(path: str | Path) -> VideoInfo:
    """Describe a video file, or say why it cannot be used.

    Raises:
        ScanError: not a file, no video, audio only, no frames, or none that can be decoded.
    """
    with VideoReader(path) as reader:
        return reader.info()


def read_frames(
    path: str | Path,
    *,
    times_s: Sequence[float] | None = None,
    indices: Sequence[int] | None = None,
    size: int | tuple[int, int] | None = None,
    colour: str = "rgb",
) -> np.ndarray:
    """Decode frames of a file by presentation time or by number; see :meth:`VideoReader.read`.

    Args:
        times_s: seconds from the first frame; the frame whose presentation time is nearest is taken.
        indices: numbers of frames, instead of times.

    Returns:
        (T, H, W, C) uint8.
    """
    if (times_s is None) == (indices is None):
        raise InputError("read_frames takes either times_s or indices")
    with VideoReader(path) as reader:
        if indices is None:
            indices = reader.index.nearest(np.asarray(times_s, float))
        return reader.read(indices, size=size, colour=colour)
