"""Features for the tests of heads: clouds around class centres, several views of an image, rows that stay on disk."""

from __future__ import annotations

import numpy as np

WIDTHS = (6, 10)


def clouds(
    counts: list[int], *, noise: float = 1.0, seed: int = 0, widths: tuple[int, ...] = WIDTHS
) -> tuple[np.ndarray, np.ndarray]:
    """Return features float32 (N, D) around a random centre for each class, and labels, in random order."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1, (len(counts), sum(widths)))
    labels = np.repeat(np.arange(len(counts)), counts)
    features = centres[labels] + generator.normal(0, noise, (len(labels), sum(widths)))
    order = generator.permutation(len(labels))
    return features[order].astype(np.float32), labels[order]


def with_views(
    features: np.ndarray, labels: np.ndarray, n_views: int, *, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return features, labels and image numbers of n_views rows an image: the clean one, then others near it.

    Clean rows come first, the numbers are neither sorted nor without gaps, and the first image has a view less.
    """
    generator = np.random.default_rng(seed)
    numbers = generator.permutation(3 * len(labels))[: len(labels)]
    near = [features + generator.normal(0, 0.3, features.shape).astype(np.float32) for _ in range(n_views - 1)]
    kept = np.ones(n_views * len(labels), dtype=bool)
    kept[-len(labels)] = n_views == 1
    return np.concatenate([features, *near])[kept], np.tile(labels, n_views)[kept], np.tile(numbers, n_views)[kept]


def unit(features: np.ndarray, widths: tuple[int, ...] = WIDTHS) -> np.ndarray:
    """Return float64 features with every tap's part divided by its length."""
    parts = np.split(features.astype(np.float64), np.cumsum(widths)[:-1], axis=1)
    return np.concatenate([part / np.linalg.norm(part, axis=1, keepdims=True) for part in parts], axis=1)


class OnDisk:
    """Rows that give blocks of a few thousand and refuse to be read whole."""

    def __init__(self, values: np.ndarray, limit: int = 4096) -> None:
        self._values, self._limit = values, limit
        self.shape = values.shape

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        block = self._values[rows]
        assert len(block) <= self._limit, f"{len(block)} rows asked for at once"
        return block

    def __array__(self, *_args: object, **_kwargs: object) -> np.ndarray:
        raise AssertionError("read whole")

    def __len__(self) -> int:
        raise AssertionError("treated as a list")
