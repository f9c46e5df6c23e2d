"""Linear algebra side by side: in order, on a thread each, and what is remembered of it has a limit."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from tests.heads.rows import WIDTHS, clouds
from toolkit.heads import examples
from toolkit.heads.choose import choose_head
from toolkit.heads.examples import Examples
from toolkit.heads.moments import Moments
from toolkit.heads.ridge import ridges_at_once
from toolkit.heads.threads import at_once, few_threads, is_for_one_thread, one_thread
from toolkit.planning.probes import probe_stages


@pytest.fixture()
def two_threads() -> None:
    """Let torch have two threads for a test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_that_compute_alone(two_threads: None) -> None:
    gate = threading.Barrier(2, timeout=20)

    def work(item: int) -> tuple[int, int, str]:
        if item < 2:
            gate.wait()  # so that two are in it at once
        return item, torch.get_num_threads(), threading.current_thread().name

    found = at_once(work, range(5), 2)
    assert [item for item, _, _ in found] == [0, 1, 2, 3, 4]
    assert {threads for _, threads, _ in found} == {1}
    assert len({name for _, _, name in found}) == 2
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("n_threads", [0, 1])
def test_with_one_thread_it_stays_in_the_callers(n_threads: int) -> None:
    names = at_once(lambda _: threading.current_thread().name, range(3), n_threads)
    assert set(names) == {threading.current_thread().name}
    assert at_once(lambda item: item, [], 4) == []


def test_an_error_is_the_callers() -> None:
    before = threading.active_count()
    with pytest.raises(ZeroDivisionError):
        at_once(lambda item: 1 / item, [1, 0, 2], 2)
    assert threading.active_count() == before


def test_small_features_are_for_one_thread(two_threads: None) -> None:
    assert is_for_one_thread(1_000, 2_000) and not is_for_one_thread(100_000, 2_000)
    with few_threads(10, 10):
        assert torch.get_num_threads() == 1
    with few_threads(100_000, 2_000):
        assert torch.get_num_threads() == 2
    with one_thread():
        assert torch.get_num_threads() == 1


def test_the_choice_is_the_same_on_one_core_and_on_two() -> None:
    features, labels = clouds([40, 30, 50], noise=2.0)
    before, chosen, probes = torch.get_num_threads(), [], []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            chosen.append(choose_head(features, labels, 3, WIDTHS))
            probes.append(probe_stages(features, labels, 3, WIDTHS, range(len(WIDTHS))))
    finally:
        torch.set_num_threads(before)
    assert str(chosen[0]) == str(chosen[1]) and probes[0] == probes[1]
    for one, other in zip(chosen[0].head.parameters(), chosen[1].head.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_spectra_are_remembered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = clouds([30, 25], widths=(6, 10, 4))
    made = []
    own = Moments.spectrum
    monkeypatch.setattr(Moments, "spectrum", lambda self, columns: made.append(1) or own(self, columns))
    for limit, times in ((10**6, 3), (16 * 16, 6), (0, 6)):
        monkeypatch.setattr(examples, "REMEMBERED", limit)
        made.clear()
        given = Examples(features, labels, 2, (6, 10, 4))
        for taps in ((0,), (1,), (0, 1), (0,), (1,), (0, 1)):
            spectrum = given.spectrum(taps)
            assert spectrum.vectors.shape[0] == sum((6, 10, 4)[tap] for tap in taps)
            kept = [one.vectors.size for one in given._spectra.values()]
            assert sum(kept) <= limit or len(kept) == 1
        assert len(made) == times, limit
    assert np.isfinite(spectrum.values).all()


@pytest.mark.parametrize("threads", [1, 4])
def test_the_global_random_state_stays(threads: int) -> None:
    generator = np.random.default_rng(0)
    features = generator.normal(0, 1, (60, 80)).astype(np.float32)
    labels = np.arange(60) % 3
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for _ in range(5):
            torch.manual_seed(0)
            state = torch.get_rng_state()
            probe_stages(features, labels, 3, (10,) * 8, range(8))
            choose_head(features, labels, 3, (10,) * 8)
            assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(before)


def test_few_are_tried_at_once_where_their_matrices_are_large(
    two_threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    features, labels = clouds([40, 30, 50])
    given = Examples(features, labels, 3, WIDTHS)
    assert ridges_at_once(given) == 2
    monkeypatch.setattr("toolkit.heads.ridge.AT_ONCE_BYTES", 1000)
    assert ridges_at_once(given) == 1
