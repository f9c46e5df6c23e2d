"""The final: what is judged again, who wins, and what the win is worth."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from toolkit.errors import ToolkitError
from toolkit.tuning.final import play_final
from toolkit.tuning.outcomes import Judged, Outcome


class Again:
    """An objective whose scores are given by deal and name; an image has the same luck everywhere."""

    def __init__(self, scores: Mapping[str, float], asked: list[str]) -> None:
        self.scores, self.asked = scores, asked

    def n_folds(self, short: bool) -> int:
        return 2

    def judge(self, options: Mapping[str, Any], fold: int, short: bool) -> Judged:
        name = options.get("name", "default")
        self.asked.append(name)
        if name not in self.scores:
            raise ToolkitError("it diverged")
        images = np.arange(100) * 2 + fold
        return Judged(images, np.arange(100) < 100 * self.scores[name], np.full(100, 1 - self.scores[name]))


def trial(number: int, name: str, accuracy: float, stage: str = "random") -> Outcome:
    options = {"name": name} if number else {}
    return Outcome(number, stage, "finished", {}, options, accuracy, accuracy, 0.01, 1 - accuracy)


TRIALS = [trial(0, "", 0.6, "default"), trial(1, "lucky", 0.8), trial(2, "sound", 0.78), trial(3, "weak", 0.7)]
SECOND = {"lucky": 0.66, "sound": 0.76, "weak": 0.7, "default": 0.6}
THIRD = {"sound": 0.74, "lucky": 0.6, "default": 0.62}


def play(trials: list[Outcome], second: Mapping[str, float] = SECOND, third: Mapping[str, float] = THIRD) -> Any:
    asked: dict[int, list[str]] = {1: [], 2: []}
    final = play_final(trials, lambda deal: Again({1: second, 2: third}[deal], asked[deal]))
    return final, asked


def test_the_mean_of_two_deals_decides_and_a_third_says_what_it_is_worth() -> None:
    final, asked = play(TRIALS)
    assert asked == {1: ["lucky"] * 2 + ["sound"] * 2 + ["weak"] * 2, 2: ["sound"] * 2 + ["default"] * 2}
    assert final.best is TRIALS[2]
    assert final.finalists == ((1, 0.8, 0.66), (2, 0.78, 0.76), (3, 0.7, 0.7))
    assert final.gain is not None and (final.gain.best, final.gain.default) == (0.74, 0.62)


def test_where_the_defaults_win_there_is_no_gain() -> None:
    final, asked = play([trial(0, "", 0.9, "default"), *TRIALS[1:]], {**SECOND, "default": 0.9})
    assert final.best.number == 0 and final.gain is None and asked[2] == []
    final, asked = play([TRIALS[0]])
    assert final.best is TRIALS[0] and final.finalists == () and asked == {1: [], 2: []}


def test_what_diverges_on_other_folds_is_out() -> None:
    final, _ = play(TRIALS, {"lucky": 0.6, "weak": 0.9}, third={"weak": 0.7})
    assert final.best.options == {"name": "weak"} and [number for number, *_ in final.finalists] == [1, 3]
    final, _ = play(TRIALS, third={"sound": 0.7})
    assert final.best.options == {"name": "sound"} and final.gain is None, "the defaults cannot be trained there"
    final, _ = play(TRIALS, {"lucky": 0.6, "weak": 0.9}, third={"sound": 0.7})
    assert final.best.options == {} and final.gain is None, "what cannot be trained there is not shipped"
    assert play(TRIALS, {})[0] is None and play([])[0] is None
