"""A figure in a page: its colours are variables that the page knows, its words are words, nothing needs an id."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from voco.figures import svg
from voco.figures.calibration import reliability
from voco.figures.confusion import confusion
from voco.figures.finetune import learning_curves
from voco.figures.style import DARK, LIGHT, headline, new_figure


def curves():
    rows = [{"step": step, "loss": 1 / step, "validation_loss": 0.5, "validation_auroc": 0.6} for step in (1, 2, 3)]
    return learning_curves({0: rows}, "auroc", best_steps={0: 2}, constant=0.5)


FIGURES = {
    "confusion": lambda: confusion(np.array([[3, 1], [0, 2]]), ["a", "b"]),
    "reliability": lambda: reliability([0, 1, 1, 0] * 9, np.linspace(0, 1, 36)),
    "learning": curves,
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_of_a_run_can_stand_in_a_page(name):
    figure = FIGURES[name]()
    page, file = svg(figure, "what is seen", page=True), svg(figure, "what is seen")
    colors = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", page)) - {"none"}
    assert colors and colors <= {f"var(--{color})" for color in LIGHT}
    assert not re.search(r"https?:|url\(|\bid=|href|<image|<style", page)
    assert set(re.findall(r"#[0-9a-f]{6}", file)) <= set(LIGHT.values()) and "var(" not in file
    words = [node.text for node in ElementTree.fromstring(page).iter("text")]
    assert figure.texts[0].get_text() in words
    assert page == svg(FIGURES[name](), "what is seen", page=True)


def test_no_two_colours_of_the_palette_are_alike_and_dark_has_all_of_them():
    assert len(set(LIGHT.values())) == len(LIGHT) and LIGHT.keys() == DARK.keys()


def test_words_take_no_more_room_in_a_page_than_in_a_file():
    figure = new_figure(300)
    headline(figure, "Title", "below")
    sizes = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", svg(figure))]
    assert sizes == pytest.approx([13 / 0.88, 9.5 / 0.88], abs=0.06)
