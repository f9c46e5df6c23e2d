"""Decoding by threads in turn with the passes of a network on the same cores, not beside them.

A network's threads wait for each other after every layer. Where decoding processes take a core from one of them, all
wait: on two cores 1,500 photographs then went through EfficientNet-Lite0 at 0.85 of what decoding and passes take one
after the other, and by turns at 0.94 (scripts/bench/extraction). Pillow decodes and resizes without the interpreter's
lock. For a GPU, which leaves the cores alone, processes decode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

AT_ONCE = 8  # views a thread, so that they end together
MOST_AT_ONCE = 256  # of all threads: 39 MB of 224 px

_Key = TypeVar("_Key")
_Sample = TypeVar("_Sample")
_Batch = TypeVar("_Batch")


def by_turns(
    sample: Callable[[_Key], _Sample],
    batches: Iterable[Sequence[_Key]],
    collate: Callable[[Sequence[_Sample]], _Batch],
    threads: int,
    size: Callable[[Sequence[_Key]], int] = len,
) -> Iterator[_Batch]:
    """Yield what `collate` makes of the samples of each batch; nothing is being decoded while the caller works.

    size: how many views a batch makes.
    """
    with ThreadPoolExecutor(threads) as pool:
        for some in _about(batches, min(MOST_AT_ONCE, AT_ONCE * threads), size):
            samples = iter(list(pool.map(sample, [key for batch in some for key in batch])))
            for batch in some:
                yield collate(list(islice(samples, len(batch))))


def _about(
    batches: Iterable[Sequence[_Key]], n: int, size: Callable[[Sequence[_Key]], int]
) -> Iterator[list[Sequence[_Key]]]:
    """Yield the next batches that make n views together, or all that are left."""
    some: list[Sequence[_Key]] = []
    for batch in batches:
        some.append(batch)
        if sum(map(size, some)) >= n:
            yield some
            some = []
    if some:
        yield some
