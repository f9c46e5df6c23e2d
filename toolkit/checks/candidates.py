"""Which pairs of images may be the same picture: neighbours by their features, or by a perceptual hash."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from toolkit.heads.blocks import Rows, spans, unit_rows
from toolkit.progress import counting

Pairs = NDArray[np.int64]  # (M, 2), rows of images, the smaller first


@dataclass(frozen=True, eq=False)
class Candidates:
    """Pairs that may be the same picture, the most alike first."""

    pairs: Pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def among(self, rows: NDArray[np.int64]) -> Candidates:
        """Return them as rows of a larger set; rows: int64, ascending, where each image is there."""
        return Candidates(rows[self.pairs])

    @classmethod
    def of(cls, pairs: Pairs, likeness: NDArray[np.float32]) -> Candidates:
        """Sort pairs by their likeness, float (M,); each stays once, with the largest."""
        order = np.argsort(-likeness, kind="stable")
        _, first = np.unique(np.sort(pairs, axis=1)[order], axis=0, return_index=True)
        return cls(np.sort(pairs[order[np.sort(first)]], axis=1))


NEIGHBOURS = 5  # of an image, the most alike, that are looked at
LEAST_COSINE = 0.7  # of centred features; copies of flowers had 0.81 and more
HASH_PX, HASH_SIDE = 32, 8  # pixels a side, and cosine waves a side that make bits
LEAST_WAVE = 100.0  # of 255 × 32 × 32 at most; what is weaker is rounding, and its bits say nothing
MOST_BITS = 8  # of 63 that differ; copies that are re-encoded have 0 to 4, cropped ones up to 20
BLOCK, PRODUCTS = 1024, 20_000_000  # rows at a time, and their products: 80 MB
PROJECTED_ABOVE, PROJECTED_TO = 20_000, 256  # images, and numbers each: a cosine is then off by 0.06 or so


def feature_pairs(features: Rows, widths: Sequence[int], seed: int = 0) -> Candidates:
    """Return pairs of images with a cosine of at least 0.7, each image with its five nearest at most.

    features: float32 (N, D), the pooled outputs of some stages side by side, `widths` of each: every stage is centred,
    brought to length 1, and counts alike. Mirror images are near each other too, as pooling forgets where things are.
    Costs N² D multiplications and N D numbers of memory; above 20,000 images D is 256, by a random projection (Johnson
    and Lindenstrauss 1984), and a line tells how far it is.
    """
    n, width = features.shape[0], sum(widths)
    if n < 2:
        return Candidates(np.empty((0, 2), np.int64))
    mean = sum(np.asarray(features[span], np.float64).sum(axis=0) for span in spans(n)) / n
    projection = None
    if n > PROJECTED_ABOVE and width > PROJECTED_TO:
        projection = np.random.default_rng(seed).standard_normal((width, PROJECTED_TO), np.float32)
    blocks = []
    for span in spans(n):
        units = unit_rows(np.asarray(features[span], np.float32) - mean.astype(np.float32), widths)
        units /= np.sqrt(len(widths)).astype(np.float32)
        if projection is not None:
            units = units @ projection
            units /= np.maximum(np.linalg.norm(units, axis=1, keepdims=True), 1e-12)
        blocks.append(units)
    return Candidates.of(*_nearest(np.concatenate(blocks), LEAST_COSINE))


def hash_pairs(hashes: NDArray[np.bool_], mirrored: NDArray[np.bool_]) -> Candidates:
    """Return pairs of images whose perceptual hashes, or those of one and the other's mirror image, differ in few bits.

    hashes, mirrored: bool (N, 63) both; a hash that is all False (a picture of one colour) has no neighbours.
    """
    some = np.where(hashes, 1.0, -1.0).astype(np.float32)
    some[~hashes.any(axis=1)] = 0
    turned = np.where(mirrored, 1.0, -1.0).astype(np.float32)
    turned[~hashes.any(axis=1)] = 0
    least = some.shape[1] - 2 * MOST_BITS
    plain, turned_over = _nearest(some, least), _nearest(some, least, turned)
    return Candidates.of(np.concatenate([plain[0], turned_over[0]]), np.concatenate([plain[1], turned_over[1]]))


def perceptual_hashes(grey: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return bool (N, 63) of pictures float32 (N, 32, 32), and of their mirror images.

    A bit says whether one of the 8 × 8 slowest cosine waves, the constant aside, is stronger than their median (pHash;
    Zauner 2010, "Implementation and benchmarking of perceptual image hash functions"). Mirrored, odd waves change sign.
    """
    place = np.arange(HASH_PX)
    waves = np.cos(np.pi * (2 * place + 1) * np.arange(HASH_SIDE)[:, None] / (2 * HASH_PX)).astype(np.float32)
    found = np.einsum("ky,nyx,lx->nkl", waves, grey, waves, optimize=True)
    turned = found * np.where(np.arange(HASH_SIDE) % 2, -1, 1)
    return _bits(found), _bits(turned)


def unique_pairs(some: Sequence[Pairs]) -> Pairs:
    """Return all pairs once, sorted, the smaller row first."""
    pairs = np.concatenate([np.empty((0, 2), np.int64), *some])
    return np.unique(np.sort(pairs, axis=1), axis=0)


def _bits(waves: NDArray[np.float32]) -> NDArray[np.bool_]:
    flat = waves.reshape(len(waves), -1)[:, 1:]
    spread = np.abs(flat).max(axis=1, keepdims=True, initial=0)
    bits: NDArray[np.bool_] = (flat > np.median(flat, axis=1, keepdims=True)) & (spread > LEAST_WAVE)
    return bits


def _nearest(
    units: NDArray[np.float32], least: float, others: NDArray[np.float32] | None = None
) -> tuple[Pairs, NDArray[np.float32]]:
    """Return pairs (row of `units`, row of `others`) with a product of at least `least`, the nearest five of a row, and
    these products."""
    others = units if others is None else others
    pairs, likeness = [np.empty((0, 2), np.int64)], [np.empty(0, np.float32)]
    quiet = len(units) <= PROJECTED_ABOVE
    with nullcontext() if quiet else counting("comparing images", len(units)) as counter:
        for start, products in _blocks(units, others):
            k = min(NEIGHBOURS, products.shape[1])
            nearest = np.argpartition(products, -k, axis=1)[:, -k:]
            found = np.take_along_axis(products, nearest, axis=1)
            rows, places = np.nonzero(found >= least)
            pairs.append(np.stack([rows + start, nearest[rows, places]], axis=1))
            likeness.append(found[rows, places])
            if counter is not None:
                counter.advance(len(products))
    return np.concatenate(pairs), np.concatenate(likeness)


def _blocks(units: NDArray[np.float32], others: NDArray[np.float32]) -> Iterator[tuple[int, NDArray[np.float32]]]:
    size = max(16, min(BLOCK, PRODUCTS // max(1, len(others))))
    for start in range(0, len(units), size):
        products = units[start : start + size] @ others.T
        here = np.arange(len(products))
        products[here, start + here] = -np.inf  # itself
        yield start, products
