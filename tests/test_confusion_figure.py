"""Pictures of video runs: of the promised size, readable for few and for many classes, words that say the numbers."""

from __future__ import annotations

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from voco.figures.confusion import confusion
from voco.figures.export import save
from voco.figures.video import accuracy_curves, clip_strips


@pytest.fixture
def texts(monkeypatch):
    """Everything that was written into the figure saved last: words and their boxes in pixels."""
    seen, plain = {}, Figure.savefig

    def savefig(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        seen.clear()
        found = [t for t in self.findobj(Text) if t.get_text().strip() and t.get_visible()]
        seen.update({(t.get_text(), i): t.get_window_extent() for i, t in enumerate(found)})

    monkeypatch.setattr(Figure, "savefig", savefig)
    return seen


def words(texts):
    return [text for text, _ in texts]


def check(path):
    image = matplotlib.image.imread(path)
    assert image.shape[1] == 1200 and image.shape[0] > 400 and image[..., :3].std() > 0.02
    return image


@pytest.mark.parametrize("count", [2, 10, 101])
def test_confusion_says_what_was_taken_for_what(tmp_path, texts, count):
    names = [f"class of a long name {i}" for i in range(count)]
    matrix = np.diag(np.full(count, 8))
    matrix[1, 0], matrix[0, 1] = 5, 2
    image = check(save(confusion(matrix, names), tmp_path / "figures" / "confusion.png"))
    found = words(texts)
    right, total = 8 * count, 8 * count + 7
    assert f"{right} of {total} held-out clips are named right ({right / total:.0%})" in found
    assert {"5 of 13", "2 of 10", "62% of 13", "80% of 10"} <= set(found)
    assert ("5\n38%" in found) == (count <= 10)
    assert any(text.startswith("class o") and text.count("→") == 1 and text.endswith(" 0") for text in found)
    # nothing is written outside the picture, and no list entry into the numbers beside it
    height = image.shape[0]
    assert all(box.x0 >= 0 and box.x1 <= 1200 and box.y0 >= 0 and box.y1 <= height for box in texts.values())
    values = {box.y1: box for (text, _), box in texts.items() if " of " in text and box.x0 > 1000}
    pairs = [box for (text, _), box in texts.items() if "→" in text and "true" not in text]
    assert len(pairs) == 2 and all(box.x1 < min(v.x0 for v in values.values()) for box in pairs)


def test_the_diagonal_is_dark_and_rows_are_true_classes(tmp_path):
    matrix = np.array([[3, 0, 0], [4, 0, 0], [0, 0, 0]])
    image = check(save(confusion(matrix, ["a", "b", "c"], title="t"), tmp_path / "c.png"))
    left, side = 36 + int(1.02 * 10), 620 / 3

    def cell(row, column):
        return image[int(110 + (row + 0.2) * side), int(left + (column + 0.2) * side), :3].tolist()

    blue, white = [0, 0x72 / 255, 0xB2 / 255], [1, 1, 1]
    assert cell(0, 0) == pytest.approx(blue, abs=0.01) and cell(1, 0) == pytest.approx(blue, abs=0.01)
    assert cell(0, 1) == pytest.approx(white) and cell(2, 2) == pytest.approx(white)


def test_classes_without_clips_and_no_mistakes(tmp_path, texts):
    save(confusion(np.diag([3, 0, 2]), ["a", "b", "c"]), tmp_path / "c.png")
    assert "none" in words(texts) and "1 of 3 classes have no held-out clip" in words(texts)
    save(confusion(np.zeros((2, 2), int), ["a", "b"]), tmp_path / "c.png")
    assert "No held-out clip has an answer" in words(texts)


def test_curves_label_the_lines_and_what_was_not_measured(tmp_path, texts):
    rows = [{"step": s, "loss": 2.0 - s / 100, "top1": s / 100} for s in range(1, 101)]
    held = {"heldout/loss": 1.25, "heldout/top1_balanced": 0.75, "heldout/features_top1_balanced": 0.65}
    rows.append({"step": 100, **held})
    levels = {"constant": 0.25, "step0": 0.36, "untrained": 0.33, "single_frame": 0.3}
    lines = {"lines/constant_loss": 1.39} | {f"lines/{name}_top1_balanced": level for name, level in levels.items()}
    check(save(accuracy_curves(rows, lines, limit=0.45), tmp_path / "a.png"))
    assert {"not knowing 1.39", "held-out 1.25", "classifier 0.75", "features 0.65"} <= set(words(texts))
    assert {"constant answer 0.25", "own step 0 0.36", "untrained 0.33", "single frame 0.30"} <= set(words(texts))
    assert "At step 100: held-out top-1 of the encoder's features 0.65 (best line 0.36)" in words(texts)
    check(save(accuracy_curves([{"step": 1, "loss": float("nan")}], {}), tmp_path / "a.png"))
    assert "No held-out accuracy of the encoder's features has been measured yet" in words(
        texts
    ) and "not measured" in words(texts)


def test_strips_show_the_clip_as_it_is(tmp_path, texts):
    clip = np.zeros((9, 20, 20, 1), np.uint8)
    clip[-1] = 255
    colours = np.zeros((9, 20, 20, 3), np.uint8)
    colours[..., 0] = 255
    image = check(save(clip_strips([(clip, "walk", "walk"), (colours, "help", "yes")]), tmp_path / "s.png"))
    assert {"walk", "right", "help", "called yes", "1 of 2 clips named right"} <= set(words(texts))
    strip = image[100:214, 210:1160, :3]
    assert strip[50, 20:90].max() < 0.1 and strip[50, 860:920].min() > 0.9
    assert image[290, 260, :3].tolist() == pytest.approx([1, 0, 0])
