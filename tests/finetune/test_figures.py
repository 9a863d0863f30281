from __future__ import annotations

from types import SimpleNamespace

from finetune.config import ScoreConfig
from finetune.figures import draw_figures


def test_pictures_can_be_left_out(tmp_path):
    session = SimpleNamespace(config={"score": ScoreConfig(figures=False)}, out=tmp_path)
    assert draw_figures(session, None, {}) == [] and list(tmp_path.iterdir()) == []
