"""The code under judgement, called: the public door and the pure checks."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from tests.checks.pictures import random_backbone
from tests.checks.planted import Case, Planted

DATA_FINDINGS = [
    "unreadable",
    "tiny_images",
    "huge_images",
    "empty_class",
    "missing_class",
    "few_images",
    "imbalance",
    "exact_duplicates",
    "near_duplicates",
    "conflicting_labels",
    "leaks",
    "label_errors",
    "input_statistics",
    "predict_preprocessing",
]
ROOM_OF = dict.fromkeys(("first_loss", "regularized_loss", "gradients", "last_batch"), "model")
ROOM_OF |= {"overfit": "learning", "activations": "activations", "gradient_flow": "activations"}


def report_on(planted: Planted, *, needs_weights: bool, **settings: Any) -> Any:
    """Return the report of the public door: with random features where those tell, else with the real weights."""
    from toolkit import check

    settings = {"device": "cpu", "workers": 0, "image_size": 64, **settings, **planted.settings}
    if "model" not in settings and "backbone" not in settings and not needs_weights:
        settings["backbone"] = random_backbone()
    if "backbone" in settings:  # which says itself what it takes
        del settings["image_size"]
    return check(str(planted.data), **settings)


def finding_on(name: str, case: Case) -> Any:
    """Return the finding of a pure check."""
    from toolkit.checks.learner import Learner

    function: Callable[..., Any] = getattr(importlib.import_module(f"toolkit.checks.{ROOM_OF[name]}"), name)
    if name == "activations":
        return function(case.network, case.inputs)
    learner = Learner(case.network, **case.settings)
    if name == "overfit":
        return function(learner, case.batch or (lambda step: (case.inputs, case.labels)))
    return function(learner, case.inputs, case.labels)
