"""Synthetic labeled clips: one shape that moves, grows or turns, in front of a still background.

The label is what happens over time. Position, size and angle run around in circles from a uniform start (who leaves on
the right comes back on the left), so at every moment they are uniform for every class: by construction, no single frame
says anything about the label.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from voco.data.synthetic import MARK
from voco.rng import derive_seed
from voco.short_repr import short_repr

# label -> (place that changes, its direction): columns to the right, rows downward, angles clockwise as seen.
CLASSES = {
    "grows": ("size", 1),
    "moves_down": ("row", 1),
    "moves_left": ("column", -1),
    "moves_right": ("column", 1),
    "moves_up": ("row", -1),
    "shrinks": ("size", -1),
    "turns_left": ("angle", -1),
    "turns_right": ("angle", 1),
}
ACTORS = 32
_RATES = (8, 10, 12, 15, 20, 25, 30)
# Part of a round during the clip. Below half a round between two of 8 frames, the direction stays plain.
_ROUNDS = {"row": (0.6, 1.2), "column": (0.6, 1.2), "size": (0.6, 1.2), "angle": (0.5, 1.0)}
# Half the shape's extent as a share of the shorter side; a round of size goes from one to the other and starts again.
_SIZES = (0.14, 0.42)


@short_repr
@dataclass(frozen=True)
class Actor:
    """Who is seen: everything that stays the same in the clips of one group."""

    name: str
    shape: int
    colour: np.ndarray
    background: np.ndarray
    texture: tuple[float, float, float]


@short_repr
@dataclass(frozen=True)
class PhantomClip:
    """One drawn clip.

    Attributes:
        name: unique in the set.
        label, actor: class and group.
        frames: (T, H, W, 3) uint8.
        times: (T,) presentation times in ticks of 1 / fps; some clips leave out frames, so the rate varies.
        fps: nominal rate.
    """

    name: str
    label: str
    actor: str
    frames: np.ndarray
    times: np.ndarray
    fps: int


@short_repr
@dataclass(frozen=True)
class Script:
    """What happens in a clip, before anything is drawn.

    Attributes:
        label, actor, fps, times: as in :class:`PhantomClip`; the actor by number.
        size: (H, W) in pixels.
        place: (T,) each for row, column, size and angle, in rounds from 0 to 1.
    """

    label: str
    actor: int
    size: tuple[int, int]
    fps: int
    times: np.ndarray
    place: dict[str, np.ndarray]


def make_clip(seed: int, index: int) -> PhantomClip:
    """Draw clip ``index``; it is the same in a set of any size.

    Labels and actors take turns: clips 8 k … 8 k + 7 are the eight classes by actor k mod 32.
    """
    script = write_script(seed, index)
    actor = make_actor(seed, script.actor)
    rng = np.random.default_rng(derive_seed(seed, "phantom picture", index))
    frames = _draw(rng, actor, script.size, script.place)
    name = f"{script.label}_{actor.name}_{index:04d}"
    return PhantomClip(name, script.label, actor.name, frames, script.times, script.fps)


def write_script(seed: int, index: int) -> Script:
    """Draw what happens in clip ``index``."""
    rng = np.random.default_rng(derive_seed(seed, "phantom clip", index))
    label = list(CLASSES)[index % len(CLASSES)]
    short = int(rng.integers(32, 50))
    size = tuple(2 * int(n) for n in rng.permutation([short, round(short * rng.uniform(1, 1.3))]))
    count, fps = int(rng.integers(16, 49)), int(rng.choice(_RATES))
    times = np.arange(count)
    if rng.random() < 0.25:
        times = np.flatnonzero((rng.random(count) > 0.25) | (times == 0))
    place = {name: float(rng.random()) + np.zeros(len(times)) for name in _ROUNDS}
    changing, direction = CLASSES[label]
    place[changing] = (place[changing] + direction * rng.uniform(*_ROUNDS[changing]) * times / count) % 1.0
    return Script(label, index // len(CLASSES) % ACTORS, size, fps, times, place)


def make_actor(seed: int, number: int) -> Actor:
    """Shape, colours and texture of one actor; the shape is clearly brighter than the background, so gray is enough."""
    rng = np.random.default_rng(derive_seed(seed, "phantom actor", number))
    background, colour = rng.uniform(10, 90, 3), rng.uniform(150, 245, 3)
    texture = (rng.uniform(3, 12), rng.uniform(0, np.pi), rng.uniform(0, 12))
    return Actor(f"actor{number:02d}", number % len(_SHAPES), colour, background, texture)


def _draw(rng: np.random.Generator, actor: Actor, size: tuple[int, int], place: dict[str, np.ndarray]) -> np.ndarray:
    """(T, H, W, 3) uint8: background, the shape with soft edges, noise of the camera."""
    height, width = size
    short = min(size)
    waves, direction, depth = actor.texture
    rows, columns = np.mgrid[:height, :width].astype(np.float32)
    phase = (rows * np.sin(direction) + columns * np.cos(direction)) * (2 * np.pi * waves / short)
    still = actor.background + depth * np.sin(phase + rng.uniform(0, 6.28))[..., None]
    still = still + rng.normal(0, 4, (height, width, 1))
    frames = np.empty((len(place["row"]), height, width, 3), np.uint8)
    for t in range(len(frames)):
        # the nearest copy of a shape that repeats beyond every edge
        y = (rows - place["row"][t] * height + height / 2) % height - height / 2
        x = (columns - place["column"][t] * width + width / 2) % width - width / 2
        radius = short * _SIZES[0] * (_SIZES[1] / _SIZES[0]) ** place["size"][t]
        angle = 2 * np.pi * place["angle"][t]
        # rows grow downward, so a growing angle turns clockwise as seen
        u = (np.cos(angle) * x + np.sin(angle) * y) / radius
        v = (np.cos(angle) * y - np.sin(angle) * x) / radius
        cover = np.clip(0.5 - _SHAPES[actor.shape](u, v) * radius, 0, 1)[..., None]
        image = still * (1 - cover) + actor.colour * cover
        frames[t] = np.clip(image + rng.normal(0, 3, (height, width, 1)), 0, 255)
    return frames


def _box(u, v, left, right, top, bottom):
    return np.maximum(np.maximum(left - u, u - right), np.maximum(top - v, v - bottom))


# Distance to the edge, negative inside, in units of the radius. None looks the same after less than half a turn.
_SHAPES = (
    lambda u, v: np.maximum(0.894 * np.abs(v) + 0.447 * u - 0.447, -0.9 - u),  # arrow head
    lambda u, v: _box(u, v, -1.0, 1.0, -0.3, 0.3),  # bar
    lambda u, v: np.minimum(_box(u, v, -0.9, -0.35, -0.9, 0.9), _box(u, v, -0.9, 0.7, 0.35, 0.9)),  # L
    lambda u, v: np.maximum(np.hypot(u, v) - 0.95, u),  # half disc
    lambda u, v: np.minimum(_box(u, v, -0.9, 0.9, -0.9, -0.35), _box(u, v, -0.25, 0.25, -0.9, 0.9)),  # T
    lambda u, v: np.minimum(np.hypot(u + 0.3, v) - 0.6, _box(u, v, 0.0, 1.0, -0.18, 0.18)),  # spoon
    lambda u, v: np.maximum(np.hypot(u, v) - 0.9, 0.5 * u - 0.87 * np.abs(v) - 0.05),  # open mouth
)


def write_clip(out: Path, seed: int, index: int) -> tuple[Path, dict]:
    """Draw and encode one clip.

    Returns:
        The file, ``OUT/LABEL/NAME.mp4`` (H.264), ``.mkv`` (H.264) or ``.avi`` (MPEG-4), and its row of the list.
    """
    clip = make_clip(seed, index)
    rng = np.random.default_rng(derive_seed(seed, "phantom clip file", index))
    suffix, codec = (("mp4", "libx264"), ("mp4", "libx264"), ("mkv", "libx264"), ("avi", "mpeg4"))[rng.integers(4)]
    path = out / clip.label / f"{clip.name}.{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, clip.frames, clip.fps, times=clip.times, codec=codec, comment=f"{MARK}: nobody's video")
    row = {
        "path": path.relative_to(out).as_posix(), "label": clip.label, "group": clip.actor,
        "frames": len(clip.frames), "fps": clip.fps, "size": list(clip.frames.shape[1:3]),
    }  # fmt: skip
    return path, row


def write_clip_list(out: Path, rows: list[dict]) -> None:
    """Leave ``clips.csv``: path, label and group of every clip."""
    lines = ["path,label,group", *(f"{row['path']},{row['label']},{row['group']}" for row in rows)]
    (out / "clips.csv").write_text("\n".join(lines) + "\n")


def write_video(
    path: Path,
    frames: np.ndarray,
    fps: int,
    *,
    times: np.ndarray | None = None,
    codec: str = "libx264",
    comment: str = "",
    **options: str,
) -> None:
    """Encode frames; the same frames give the same bytes.

    Args:
        path: the suffix says which container.
        frames: (T, H, W, 3) uint8, H and W even.
        times: (T,) presentation times in ticks of 1 / fps; default 0, 1, 2 …
        codec: of FFmpeg; MPEG-4 where this FFmpeg lacks it.
        comment: to leave in the container.
        options: of the encoder.
    """
    from fractions import Fraction

    import av

    if codec not in av.codecs_available:
        codec = "mpeg4"
    # x264 with its macroblock tree gives other bytes on every run.
    x264 = {"crf": "20", "preset": "veryfast", "x264-params": "mbtree=0"}
    quality = {"libx264": x264, "mpeg4": {"qmin": "2", "qmax": "4"}}.get(codec, {})
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        if comment:
            container.metadata["comment"] = comment
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", **quality, **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for time, image in zip(range(len(frames)) if times is None else times.tolist(), frames):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
