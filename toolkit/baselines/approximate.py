"""An approximate index over the training images: a graph of neighbours (HNSW) by faiss, the extra `ann`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from toolkit.errors import SettingError

LINKS = 32  # of an image to others
LOOKED_AT_WHEN_BUILT, LOOKED_AT_WHEN_ASKED = 100, 128  # images, at least


class ApproximateIndex:
    """Finds neighbours by walking a graph (Malkov & Yashunin 2018); now and then it misses one."""

    def __init__(self, index: Any, metric: str) -> None:
        self.index = index
        self.metric = metric

    def nearest(self, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return distances float64 and row numbers of the k nearest that were found, (N, k) both, nearest first."""
        self.index.hnsw.efSearch = max(LOOKED_AT_WHEN_ASKED, 2 * k)
        distances, numbers = self.index.search(_in_space(rows, self.metric), k)
        found = torch.from_numpy(numbers).clamp_min(0)  # −1 where the walk ended early
        far = torch.from_numpy(distances).double()
        if self.metric == "cosine":
            far = 1 - far
        elif self.metric == "l2":
            far = far.clamp_min(0).sqrt()
        return far, found


def need_faiss() -> Any:
    """Return the package; raises SettingError, with what to install."""
    try:
        import faiss
    except ImportError:
        raise SettingError(
            "search: 'approximate' needs faiss, which is not installed: pip install 'transfer-toolkit[ann]'; or take "
            "'exact'"
        ) from None
    return faiss


def build_index(references: Tensor, metric: str) -> ApproximateIndex:
    """Return the index over references (M, D), built by one thread: the same graph every time."""
    faiss = need_faiss()
    kind = {"l1": faiss.METRIC_L1, "l2": faiss.METRIC_L2, "cosine": faiss.METRIC_INNER_PRODUCT}[metric]
    index = faiss.IndexHNSWFlat(references.shape[1], LINKS, kind)
    index.hnsw.efConstruction = LOOKED_AT_WHEN_BUILT
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        index.add(_in_space(references, metric))
    finally:
        faiss.omp_set_num_threads(threads)
    return ApproximateIndex(index, metric)


def _in_space(rows: Tensor, metric: str) -> Any:
    numbers = rows.float().cpu()
    if metric == "cosine":
        numbers = torch.nn.functional.normalize(numbers, dim=1)
    return numbers.contiguous().numpy()
