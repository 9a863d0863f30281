from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from voco.data.video import FrameIndex, VideoReader, probe, read_frames
from voco.data.video_frames import short_side_size
from voco.errors import InputError, ScanError
from voco.phantom.video import write_video

COUNT = 40


def pictures(count: int = COUNT, height: int = 48, width: int = 64) -> np.ndarray:
    """Frames with their number in six black and white blocks below, a white corner at the left and a red one."""
    frames = np.full((count, height, width, 3), 120, np.uint8)
    frames[:] += (2 * np.arange(count)).astype(np.uint8)[:, None, None, None]
    frames[:, :12, :12] = 255
    frames[:, :12, -12:] = (255, 0, 0)
    for bit in range(6):
        frames[:, -16:, 8 * bit : 8 * bit + 8] = (np.arange(count)[:, None, None, None] >> bit & 1) * 255
    return frames


def numbers(frames: np.ndarray) -> list[int]:
    """Which frames of ``pictures`` these are."""
    return [sum(int(f[-12:-4, 8 * b + 2 : 8 * b + 6].mean() > 128) << b for b in range(6)) for f in frames]


def decode_all(path: Path, format: str = "gray") -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format=format) for frame in container.decode(video=0)]


H264 = {"g": "10", "bf": "2", "sc_threshold": "0"}
KINDS = {
    "h264.mp4": ("libx264", H264),
    "h264.mkv": ("libx264", H264),
    "h264.avi": ("libx264", H264),
    "open.mp4": ("libx264", {**H264, "x264-params": "open-gop=1:mbtree=0"}),
    "mpeg4.avi": ("mpeg4", {"g": "8"}),
    "mpeg4b.avi": ("mpeg4", {"g": "8", "bf": "2"}),
    "mpeg4b.mp4": ("mpeg4", {"g": "8", "bf": "2"}),
    "mjpeg.avi": ("mjpeg", {}),
    "h264.ts": ("libx264", H264),
    "mpeg2.ts": ("mpeg2video", {"g": "10", "bf": "2", "qscale": "3"}),
    "h264.flv": ("libx264", H264),
    "wmv2.wmv": ("wmv2", {"g": "8", "qscale": "3"}),
    "vp8.webm": ("libvpx", {"g": "10", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "10"}),
    "h264.mov": ("libx264", {**H264, "bf": "0"}),
    "mpeg2.mpg": ("mpeg2video", {"g": "10", "bf": "2", "qscale": "3"}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("videos")
    for name, (codec, options) in KINDS.items():
        write_video(path / name, pictures(), 25, codec=codec, **options)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_chosen_frames_equal_those_of_a_whole_decode(folder, name):
    path = folder / name
    expected = decode_all(path)
    assert len(expected) == COUNT
    info = probe(path)
    assert (info.frames, info.size, info.rotation) == (COUNT, (48, 64), 0)
    assert info.fps == pytest.approx(25, rel=1e-3) and info.duration_s == pytest.approx(COUNT / 25, rel=1e-3)
    for wanted in ([33], [0], [39], [21, 22, 23], [5, 38, 5, 17, 18], [12, 11, 10, 9, 20, 30], range(COUNT)):
        wanted = list(wanted)
        found = read_frames(path, indices=wanted, colour="gray")
        assert numbers(found) == wanted
        for image, number in zip(found[..., 0], wanted):
            np.testing.assert_array_equal(image, expected[number])


def test_a_clip_in_the_middle_is_reached_by_a_seek(folder):
    with VideoReader(folder / "h264.mp4") as reader:
        assert np.flatnonzero(reader.index.keys).tolist() == [0, 10, 20, 30]
        assert numbers(reader.read([31, 32])) == [31, 32]
        assert reader.decoded == 3  # 30, 31, 32
        assert numbers(reader.read([1, 39])) == [1, 39]
        assert reader.decoded <= 3 + 2 + 12  # not the 20 frames between


def test_a_reader_takes_the_index_of_an_earlier_one(folder):
    with VideoReader(folder / "h264.avi") as reader:
        index = reader.index
    assert index.in_order
    with VideoReader(folder / "h264.avi", index) as reader:
        assert numbers(reader.read([7, 3, 25])) == [7, 3, 25]


def test_variable_rate_is_chosen_by_time(tmp_path):
    times = np.array([0, 1, 2, 3, 20, 21, 40, 60, 61, 99])  # ticks of 1/100 s
    write_video(tmp_path / "v.mkv", pictures(len(times)), 100, times=times)
    info = probe(tmp_path / "v.mkv")
    assert info.frames == 10 and info.duration_s == pytest.approx(0.99 + 0.01, abs=2e-3)
    found = read_frames(tmp_path / "v.mkv", times_s=[0.0, 0.11, 0.13, 0.31, 0.5, 0.7, 0.99, 5.0])
    assert numbers(found) == [0, 3, 4, 6, 6, 8, 9, 9]


def test_nearest_frame():
    index = FrameIndex(np.arange(3), np.array([0.0, 1.0, 3.0]), np.ones(3, bool), np.arange(3))
    assert index.nearest(np.array([-1, 0.4, 0.5, 0.6, 2.0, 2.1, 9])).tolist() == [0, 0, 0, 1, 1, 2, 2]
    lone = FrameIndex(np.zeros(1), np.zeros(1), np.ones(1, bool), np.zeros(1))
    assert lone.nearest(np.array([0.0, 4.0])).tolist() == [0, 0] and lone.duration_s == 0


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_rotation_is_honoured(tmp_path, turn):
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if not hasattr(stream, "set_display_rotation"):
            pytest.skip("this PyAV cannot write a display matrix")
        stream.set_display_rotation(turn)
        for image in pictures(5):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    info = probe(path)
    assert info.size == ((48, 64) if turn == 180 else (64, 48)) and info.rotation == turn % 360
    shown = read_frames(path, indices=[2])[0].astype(int)
    # FFmpeg's sense: the matrix turns counter-clockwise, as numpy's rot90 does
    plain = np.rot90(decode_all(path, "rgb24")[2], turn // 90).astype(int)
    assert np.abs(shown - plain).mean() < 2
    small = read_frames(path, indices=[2], size=24)
    assert small.shape == ((1, 24, 32, 3) if turn == 180 else (1, 32, 24, 3))


def test_sizes_and_colours(folder):
    path = folder / "h264.mp4"
    full = read_frames(path, indices=[3])
    half = read_frames(path, indices=[3], size=(24, 32))
    mean = full[0].reshape(24, 2, 32, 2, 3).mean((1, 3))
    assert np.abs(half[0] - mean)[4:-4, 8:-8].max() <= 2 and np.abs(half[0] - mean).mean() < 3
    gray = read_frames(path, indices=[3], colour="gray")
    luma = full[0] @ np.array([0.299, 0.587, 0.114])
    assert gray.shape == (1, 48, 64, 1) and np.abs(gray[0, ..., 0] - luma).mean() < 2
    assert read_frames(path, indices=[3], size=96).shape == (1, 96, 128, 3)
    assert short_side_size((240, 320), 128) == (128, 171) and short_side_size((320, 240), 128) == (171, 128)
    with pytest.raises(InputError, match="unknown colour"):
        read_frames(path, indices=[0], colour="bgr")
    with pytest.raises(InputError, match="40 frames"):
        read_frames(path, indices=[40])
    with pytest.raises(InputError, match="either"):
        read_frames(path, indices=[0], times_s=[0])


@pytest.mark.parametrize("pixels", ["yuv420p10le", "yuv444p", "gray", "bgr0"])
def test_odd_pixel_formats(tmp_path, pixels):
    codec = "ffv1"
    path = tmp_path / "odd.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 62, 47, pixels
        for image in pictures(6, 47, 62):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pixels)))
        container.mux(stream.encode())
    found = read_frames(path, indices=[0, 4])
    assert found.shape == (2, 47, 62, 3) and numbers(found) == [0, 4]


def test_one_frame_and_repeats(tmp_path):
    write_video(tmp_path / "one.mp4", pictures(1), 25)
    info = probe(tmp_path / "one.mp4")
    assert info.frames == 1 and info.keyframes == 1
    assert numbers(read_frames(tmp_path / "one.mp4", times_s=[0, 3, 9])) == [0, 0, 0]


def encoded(path: Path, streams: list[list[tuple[str, np.ndarray, tuple[int, int]]]], form: str | None = None) -> Path:
    """A file of several streams, each of parts (codec, pictures, (W, H)) one after another, at 25 frames per second."""
    with av.open(str(path), "w", format=form) as container:
        made = []
        for parts in streams:
            stream = container.add_stream(parts[0][0], rate=25, options={"g": "10"})
            stream.width, stream.height = parts[0][2]
            stream.pix_fmt = "yuvj420p" if parts[0][0] == "mjpeg" else "yuv420p"
            made.append(stream)
        for stream, parts in zip(made, streams):
            shown = 0
            for codec, frames, (width, height) in parts:
                context = av.CodecContext.create(codec, "w")
                context.width, context.height, context.pix_fmt = width, height, stream.pix_fmt
                context.time_base, context.framerate = Fraction(1, 25), Fraction(25)
                context.options = {"g": "10", **({"bf": "2"} if form else {"bf": "0"})} if codec != "mjpeg" else {}
                packets = []
                for picture in frames:
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame = frame.reformat(width, height, format=stream.pix_fmt, interpolation="AREA")
                    frame.pts, frame.time_base, shown = shown, Fraction(1, 25), shown + 1
                    packets += context.encode(frame)
                for packet in [*packets, *context.encode(None)]:
                    packet.stream, packet.time_base = stream, Fraction(1, 25)
                    container.mux(packet)
    return path


def test_recordings_one_behind_the_other(folder, tmp_path):
    """Times begin anew in the middle: no frame may take the place of another."""
    one = (folder / "h264.ts").read_bytes()
    (tmp_path / "two.ts").write_bytes(one + one)
    single, double = probe(folder / "h264.ts"), probe(tmp_path / "two.ts")
    assert double.frames == 2 * single.frames and "no times" in double.note
    with VideoReader(folder / "h264.ts") as reader:
        wanted = reader.read(range(single.frames))
    with VideoReader(tmp_path / "two.ts") as reader:
        assert np.array_equal(reader.read(range(double.frames)), np.concatenate([wanted, wanted]))


@pytest.mark.parametrize(("name", "form"), [("dvr.mp4", "h264"), ("a.264", "h264"), ("a.hevc", "hevc")])
def test_raw_streams_have_no_times(tmp_path, name, form):
    codec = {"h264": "libx264", "hevc": "libx265"}[form]
    path = encoded(tmp_path / name, [[(codec, pictures(), (64, 48))]], form)
    info = probe(path)
    assert (info.frames, info.fps, info.size) == (COUNT, pytest.approx(25), (48, 64))
    assert info.note == "no times: taken as 25 frames per second"
    assert numbers(read_frames(path, indices=[0, 7, 21, COUNT - 1])) == [0, 7, 21, COUNT - 1]
    assert numbers(read_frames(path, times_s=[0.4, 1.0])) == [10, 25]


def test_of_several_streams_the_largest_that_lasts_is_read(tmp_path):
    preview, film = ("libx264", pictures()[::-1], (64, 48)), ("libx264", np.repeat(pictures(), 2, 2), (128, 48))
    still = ("mjpeg", pictures(2), (640, 480))
    for order in ([preview, film, still], [still, film, preview]):
        path = encoded(tmp_path / "several.mkv", [[part] for part in order])
        info = probe(path)
        assert (info.frames, info.size) == (COUNT, (48, 128))
        assert info.note.startswith("3 video streams: that of 128 x 48 pixels is read, not ")
        with VideoReader(path) as reader:
            found = reader.read([3, 35])
        with VideoReader(path, reader.index) as again:
            assert np.array_equal(again.read([3, 35]), found)
        assert numbers(found[:, :, ::2]) == [3, 35]
    assert probe(encoded(tmp_path / "one.mkv", [[preview]])).note == ""


@pytest.mark.parametrize("name", ["a.ts", "a.mp4", "a.mkv", "a.avi", "a.264"])
def test_a_resolution_that_changes_is_fitted(tmp_path, name):
    codec, form = ("mjpeg", None) if name == "a.avi" else ("libx264", "h264" if name == "a.264" else None)
    halves = [(codec, pictures()[:20], (64, 48)), (codec, pictures()[20:], (128, 96))]
    path = encoded(tmp_path / name, [halves], form)
    found = read_frames(path, indices=range(COUNT))
    assert found.shape == (COUNT, 48, 64, 3) and numbers(found) == list(range(COUNT))
    # upright frames after lying ones are shown whole, between black bars
    path = encoded(tmp_path / name, [[halves[0], (codec, np.full((20, 64, 48, 3), 200, np.uint8), (48, 64))]], form)
    with VideoReader(path) as reader:
        assert reader.info().size == (48, 64)
        late = reader.read([30], size=(96, 128))[0]
    columns = late.mean((0, 2))
    assert (columns[:26] < 30).all() and (columns[30:98] > 180).all() and (columns[102:] < 30).all()


def audio(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 16000, 0, Fraction(1, 16000)
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_unusable_files_say_why(tmp_path, folder):
    audio(tmp_path / "audio.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video\n" * 99)
    (tmp_path / "noise.mkv").write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{folder / 'h264.ts'}\n")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{folder / 'h264.mp4'}'\n")
    whole = (folder / "h264.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])  # its table of contents lies at the end
    with av.open(str(tmp_path / "none.mp4"), "w") as container:  # a header and no frames
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    os.mkfifo(tmp_path / "pipe.mp4")
    reasons = {
        "audio.mp4": "no video stream; the file holds audio",
        "empty.mp4": "the file is empty",
        "text.mp4": "no video file",
        "noise.mkv": "no video file",
        "list.mp4": "no video file",
        "concat.mp4": "no video file",
        "cut.mp4": "cut off or damaged",
        "none.mp4": "no frames|no video stream|cut off",
        "pipe.mp4": "not a regular file",
        "absent.mp4": "no such file",
        ".": "not a regular file",
    }
    for name, reason in reasons.items():
        with pytest.raises(ScanError, match=reason):
            probe(tmp_path / name)


def test_what_is_left_of_a_truncated_file_is_used(tmp_path, folder):
    whole = (folder / "h264.mkv").read_bytes()
    path = tmp_path / "cut.mkv"
    path.write_bytes(whole[: int(len(whole) * 0.6)])
    info = probe(path)
    assert 10 <= info.frames < COUNT
    assert info.duration_s == pytest.approx(info.frames / 25, rel=0.15)  # the header still says 1.6 s
    found = numbers(read_frames(path, indices=range(info.frames)))
    assert found[:8] == list(range(8)) and max(found) < COUNT and found == sorted(found)


def test_a_damaged_stretch_is_bridged(tmp_path):
    rng = np.random.default_rng(1)
    noisy = np.clip(pictures().astype(int) + rng.normal(0, 8, (COUNT, 48, 64, 1)), 0, 255).astype(np.uint8)
    write_video(tmp_path / "whole.avi", noisy, 25, codec="mjpeg")
    data = bytearray((tmp_path / "whole.avi").read_bytes())
    starts = [k for k in range(len(data) - 4) if data[k : k + 4] == b"00dc" and data[k + 8 : k + 10] == b"\xff\xd8"]
    assert len(starts) == COUNT
    for number in (15, 16, 17):
        data[starts[number] + 8 : starts[number + 1] - 1] = bytes(starts[number + 1] - 1 - starts[number] - 8)
    path = tmp_path / "damaged.avi"
    path.write_bytes(data)
    with VideoReader(path) as reader:
        found = numbers(reader.read([10, 14, 15, 16, 17, 18, 30]))
        assert reader.damaged >= 3
    assert found == [10, 14, 14, 14, 14, 18, 30]


def test_every_byte_flip_ends_in_frames_or_a_reason(tmp_path, folder):
    whole = bytearray((folder / "mpeg4.avi").read_bytes())
    rng = np.random.default_rng(0)
    path, usable = tmp_path / "flipped.avi", 0
    for _ in range(60):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 20):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        try:
            found = read_frames(path, times_s=np.linspace(0, 1.6, 6), size=(24, 32))
        except ScanError:
            continue
        usable += 1
        assert found.shape == (6, 24, 32, 3)
    assert usable > 30


@pytest.mark.real
def test_real_clips():
    root = os.environ.get("VOCO_TEST_VIDEO")
    if not root:
        pytest.skip("VOCO_TEST_VIDEO is not set: no real clips")
    path = Path(root) / "open_intel_one_by_one_person_long.mp4"
    info = probe(path)
    assert (info.frames, info.size) == (1394, (432, 768)) and info.fps == pytest.approx(10)
    with VideoReader(path) as reader:
        middle = reader.read(range(700, 716), size=128)
        assert reader.decoded <= 16 + 10
    assert middle.shape == (16, 128, 228, 3)
    for path in sorted(Path(root).glob("*.mkv")):
        assert 50 <= probe(path).frames <= 110
