"""Folds of the training images: what a trial trains on and is judged by; no other image takes part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from toolkit.data.manifest import TEST, TRAIN, UNLABELLED, VAL, Manifest
from toolkit.errors import DataError
from toolkit.heads.views import fold_splits
from toolkit.tuning.outcomes import Judged

SHORT_SHARE = 1 / 3  # of the epochs, in the coarse stage
JUDGES_AGAIN = 1_000_003  # added to the seed of the folds that judge the best and the defaults at the end


def training_only(manifest: Manifest) -> Manifest:
    """Return the split Manifest with the labels of all but the training images hidden: no trial can be judged by them.

    Raises DataError where less than two classes have two training images: then a fold has no image of a class that was
    trained on.
    """
    twice = int((manifest.class_counts(TRAIN) >= 2).sum())
    if twice < 2:
        raise DataError(
            f"{manifest.root}: a search holds out training images in turn, for which at least 2 classes need 2 of "
            f"them; {twice} {'has' if twice == 1 else 'have'}: add images, or take a smaller --val"
        )
    trained = manifest.splits == TRAIN
    splits = np.where(trained, TRAIN, TEST).astype(np.int8)
    return replace(manifest, splits=splits, labels=np.where(trained, manifest.labels, UNLABELLED))


def folds_of(manifest: Manifest, n_folds: int, seed: int) -> NDArray[np.int64]:
    """Return the fold of every row, int64 (N,), −1 for those that take no part; stratified by class."""
    rows = manifest.rows(TRAIN)
    folds = np.full(len(manifest), -1, np.int64)
    folds[rows] = fold_splits(manifest.labels[rows], None, min(n_folds, len(rows)), seed)
    return folds


def without_fold(manifest: Manifest, folds: NDArray[np.int64], fold: int, *, judging: bool = False) -> Manifest:
    """Return the Manifest with the other folds as TRAIN and all else as TEST, without labels: nobody watches the fold
    while something is trained. judging: the fold is VAL, for those who read its images."""
    trained = (folds >= 0) & (folds != fold)
    held = VAL if judging else TEST
    splits = np.where(trained, TRAIN, np.where(folds == fold, held, TEST)).astype(np.int8)
    return replace(manifest, splits=splits, labels=np.where(trained, manifest.labels, UNLABELLED))


def judged(rows: NDArray[np.int64], scores: Tensor, labels: NDArray[np.int64]) -> Judged:
    """Return how scores (n, C) of some rows do against their labels (n,); DataError for scores that are no numbers."""
    if not bool(scores.isfinite().all()):
        raise DataError("the scores are no numbers: the training diverged")
    wanted = torch.from_numpy(labels)
    nll = F.cross_entropy(scores.double(), wanted, reduction="none")
    return Judged(rows, (scores.argmax(dim=1) == wanted).numpy(), nll.numpy())


def short_epochs(epochs: int) -> int:
    """Return the epochs of a coarse trial."""
    return max(1, round(epochs * SHORT_SHARE))
