"""Video files -> an open container and the one of its video streams that is read.

What cannot be used is a ``ScanError`` with one reason.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from voco.errors import ScanError

# Play lists and other text formats would let a "video" name any file or address of this machine.
_FORMATS = "mov,matroska,avi,mpegts,mpeg,flv,ogg,asf,mpegvideo,h264,hevc,m4v,ivf,mjpeg,dv,gxf,mxf,nut,rm"
_OPEN_SECONDS = 30.0
_LARGEST = 1 << 26  # pixels of a frame; 8K video has half of that
_SHORT = 0.5  # of the frames of the longest stream: a stream with fewer is a preview


def open_video(path: Path, number: int | None = None):
    """Container and video stream, with one decoder thread: loaders already run one process per core.

    Args:
        path: a file.
        number: of the stream among all of the file, as an earlier look at it chose; None chooses.

    Raises:
        ScanError: no video that can be used.
    """
    if not path.is_file():
        raise ScanError("no such file" if not path.exists() else "not a regular file")
    if path.stat().st_size == 0:
        raise ScanError("the file is empty")
    container = _container(path)
    try:
        streams = [s for s in container.streams.video if not _is_cover(s)]
        if not streams:
            # not "type", which crashes older PyAV where a codec is unknown
            kinds = ", ".join(sorted({type(s).__name__.removesuffix("Stream").lower() for s in container.streams}))
            raise ScanError(f"no video stream; the file holds {kinds or 'nothing'}")
        if number is None and len(streams) > 1:
            number = _best(container, streams)
            container.close()
            container = _container(path)  # the look at its packets has used this one up
        stream = streams[0] if number is None else container.streams[number]
        context = stream.codec_context
        if context is None:
            raise ScanError("its codec is not known to this FFmpeg")
        if context.width * context.height > _LARGEST:
            raise ScanError(f"frames of {context.width} x {context.height} pixels are larger than what is read")
        context.thread_type, context.thread_count = "NONE", 1
        return container, stream
    except BaseException:
        container.close()
        raise


def say_streams(container, stream) -> str:
    """Which of several video streams is read; empty where there is one."""
    streams = [s for s in container.streams.video if not _is_cover(s)]
    if len(streams) < 2:
        return ""
    sizes = {s.index: f"{s.codec_context.width} x {s.codec_context.height}" for s in streams if s.codec_context}
    others = ", ".join(sizes.get(s.index, "of an unknown codec") for s in streams if s.index != stream.index)
    return f"{len(streams)} video streams: that of {sizes[stream.index]} pixels is read, not {others}"


def _container(path: Path):
    import av

    try:
        return av.open(
            os.path.abspath(path),
            metadata_errors="ignore",
            # not "options": those go to every stream as well, and older PyAV crashes where streams turn up late (MPEG)
            container_options={"format_whitelist": _FORMATS, "protocol_whitelist": "file"},
            timeout=(_OPEN_SECONDS, _OPEN_SECONDS),
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise ScanError(f"no video file, or its header is cut off or damaged: {_text(error)}") from None


def _best(container, streams) -> int:
    """Number of the stream with the largest frames among those that last; of equal ones the default, then the first."""
    import av

    usable = [s for s in streams if s.codec_context is not None and s.codec_context.width] or streams
    packets = dict.fromkeys((s.index for s in usable), 0)
    with contextlib.suppress(av.error.FFmpegError):
        for packet in container.demux(usable):
            packets[packet.stream.index] += bool(packet.size)
    lasting = [s for s in usable if packets[s.index] >= _SHORT * max(packets.values())]

    def rank(stream) -> tuple:
        context = stream.codec_context
        pixels = context.width * context.height if context is not None else 0
        return pixels if pixels <= _LARGEST else 0, _has(stream, "default"), -stream.index

    return max(lasting, key=rank).index


def _is_cover(stream) -> bool:
    """Whether a video stream is only the picture on the sleeve of a piece of music."""
    return _has(stream, "attached_pic")


def _has(stream, word: str) -> bool:
    with contextlib.suppress(AttributeError):
        return word in str(stream.disposition)
    return False


def _text(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
