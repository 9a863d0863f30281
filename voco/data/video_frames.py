"""Decoded frames -> arrays of the wanted size, the right way up."""

from __future__ import annotations

import contextlib

import numpy as np

CHANNELS = {"rgb": 3, "gray": 1}
# Flags of libswscale, which PyAV names only from version 17 on. The exact ones (accurate rounding, bitexact) make the
# result independent of the processor's instruction set.
_BILINEAR, _AREA, _EXACT = 0x2, 0x20, 0x40000 | 0x80000


class Converter:
    """Decoded frame -> (H, W, C) uint8 of the wanted size, as shown.

    All frames get the size of the first one. Where the resolution of a file changes, later frames are fitted into it,
    with black beside them where their proportions differ, as players show them.

    Args:
        stream: of the frame.
        size, colour: as in ``VideoReader.read``.
        first: (H, W) of the file's first frame as shown; None takes that of the first frame converted.
    """

    def __init__(self, stream, size: int | tuple[int, int] | None, colour: str, first: tuple[int, int] | None = None):
        from av.video.reformatter import VideoReformatter

        self.stream, self.size, self.colour = stream, size, colour
        self._first = first and (first, self._wanted(first))  # size as shown, and of the result
        self._reformatter = VideoReformatter()  # one for all frames: its tables cost five times what a frame does

    def __call__(self, frame) -> np.ndarray:
        swap, flip_y, flip_x = orientation(frame, self.stream)
        shown = (frame.width, frame.height) if swap else (frame.height, frame.width)
        if self._first is None:
            self._first = shown, self._wanted(shown)
        height, width = whole = self._first[1]
        if shown != self._first[0]:
            height, width = fitted(shown, self._first[0], whole)
        shrinks = height <= shown[0] and width <= shown[1] and (height, width) != shown
        how = (_AREA if shrinks else _BILINEAR) | _EXACT
        image = self._reformatter.reformat(
            frame,
            width=width if not swap else height,
            height=height if not swap else width,
            format="gray" if self.colour == "gray" else "rgb24",
            interpolation=how,
        ).to_ndarray()
        image = image[..., None] if image.ndim == 2 else image
        if swap:
            image = image.swapaxes(0, 1)
        image = image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]
        if (height, width) != whole:
            top, left = (whole[0] - height) // 2, (whole[1] - width) // 2
            canvas = np.zeros((*whole, image.shape[2]), image.dtype)
            canvas[top : top + height, left : left + width] = image
            image = canvas
        return np.ascontiguousarray(image)

    def _wanted(self, shown: tuple[int, int]) -> tuple[int, int]:
        if self.size is None or isinstance(self.size, tuple):
            return self.size or shown
        return short_side_size(shown, self.size)


def fitted(shown: tuple[int, int], first: tuple[int, int], whole: tuple[int, int]) -> tuple[int, int]:
    """(H, W) at which a frame fits into ``whole``, given that frames of the size ``first`` fill it."""
    zoom = min(first[0] / shown[0], first[1] / shown[1])
    return tuple(
        min(have, max(1, round(side * zoom * have / before))) for side, before, have in zip(shown, first, whole)
    )


def short_side_size(shown: tuple[int, int], short: int) -> tuple[int, int]:
    """(H, W) with the given short side and the proportions of ``shown``, rounded to whole pixels."""
    height, width = shown
    if height <= width:
        return short, max(short, round(width * short / height))
    return max(short, round(height * short / width)), short


def orientation(frame, stream) -> tuple[bool, bool, bool]:
    """(transpose, then flip rows, then flip columns) that shows a frame as it was meant."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is not None:
        # x' = a x + c y, y' = b x + d y (ISO 14496-12, 6.2.2); the image is moved back to the origin afterwards.
        m = np.frombuffer(bytes(side)[:36], np.int32)
        a, b, c, d = (int(v) for v in m[[0, 1, 3, 4]])
        if abs(b) + abs(c) > abs(a) + abs(d):
            return True, b < 0, c < 0
        return False, d < 0, a < 0
    # Old files carry a tag instead: degrees clockwise.
    with contextlib.suppress(ValueError):
        turn = round(float(stream.metadata.get("rotate", "0")) / 90) % 4
        return ((False, False, False), (True, False, True), (False, True, True), (True, True, False))[turn]
    return False, False, False
