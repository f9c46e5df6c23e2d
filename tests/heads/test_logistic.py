"""LogisticHead: scikit-learn's solution, a strength that fits the noise, and classes with few images or none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from tests.heads.rows import WIDTHS, OnDisk, clouds, unit, with_views
from toolkit.features.mapped import mapped
from toolkit.heads import examples, logistic, softmax_solver
from toolkit.heads.inputs import Inputs, Preconditioner
from toolkit.heads.logistic import STRENGTHS, LogisticHead
from toolkit.heads.softmax_solver import cross_entropy, solve
from toolkit.heads.views import fold_splits


def probabilities(head: LogisticHead, features: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return head.head_(torch.from_numpy(features)).double().softmax(dim=1).numpy()


@pytest.mark.parametrize("counts", [[30, 25], [20, 25, 15, 30]], ids=["two classes", "four classes"])
@pytest.mark.parametrize("strength", [1.0, 100.0])
@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("widths", [WIDTHS, (70, 90)], ids=["few columns", "many columns"])
def test_it_is_scikit_learns_solution(counts, strength, balanced, widths):
    features, labels = clouds(counts, widths=widths, noise=2.0)
    ours = LogisticHead(widths, strengths=[strength], balanced=balanced).fit(features, labels, len(counts))
    assert np.abs(probabilities(ours, features) - sklearns(features, labels, widths, strength, balanced)).max() < 2e-3
    assert ours.strength_ == strength


def sklearns(
    features: np.ndarray, labels: np.ndarray, widths: tuple[int, ...], strength: float, balanced: bool
) -> np.ndarray:
    """Return the probabilities of scikit-learn's optimum.

    For two classes it has one row of weights w where a softmax has −w/2 and w/2, half the penalty: C counts twice.
    """
    strength = 2 * strength if labels.max() == 1 else strength
    weight = "balanced" if balanced else None
    inputs = unit(features, widths)
    model = LogisticRegression(C=strength, tol=1e-10, max_iter=5000, class_weight=weight).fit(inputs, labels)
    return model.predict_proba(inputs)


@pytest.mark.parametrize("widths", [WIDTHS, (70, 90)], ids=["few columns", "many columns"])
def test_the_gradient_is_the_losss(widths):
    features, labels = clouds([30, 25, 20], widths=widths)
    inputs = Inputs(examples.Examples(features, labels, 3, widths), (0, 1))
    generator = np.random.default_rng(0)
    weights, solutions = generator.uniform(0, 2, (4, 75)), generator.normal(0, 1, (4, inputs.width + 1, 3))
    directions = generator.normal(0, 1, solutions.shape)
    blocks = [slice(0, 40), slice(40, 75)]
    gradients = cross_entropy(inputs, labels, weights, solutions, blocks)[1]
    step = 1e-2 * directions
    above, below = (cross_entropy(inputs, labels, weights, solutions + way * step, blocks)[0] for way in (1, -1))
    assert (above - below) / 2e-2 == pytest.approx((gradients * directions).sum(axis=(1, 2)), rel=1e-3)


def test_blocks_of_many_rows_give_the_same_solution():
    features, labels = clouds([1500, 1500, 1200], noise=3.0)
    ours = LogisticHead(WIDTHS, strengths=[1.0]).fit(OnDisk(features), labels, 3)
    assert np.abs(probabilities(ours, features) - sklearns(features, labels, WIDTHS, 1.0, False)).max() < 2e-3


@pytest.mark.parametrize("widths", [WIDTHS, (150, 250)], ids=["few columns", "many columns"])
def test_scores_out_of_fold_are_those_of_models_without_the_images(widths):
    features, labels, images = with_views(*clouds([40, 30, 50], noise=3.0, widths=widths), 3)
    head = LogisticHead(widths, strengths=[3.0], seed=7).fit(features, labels, 3, images)
    folds = fold_splits(labels, images, 10, seed=7)
    inputs, counts = unit(features, widths), np.array([(images == image).sum() for image in images])
    for fold in (0, 9):
        out = folds == fold
        assert not set(images[out]) & set(images[~out])
        model = LogisticRegression(C=3.0, tol=1e-10, max_iter=5000)
        model.fit(inputs[~out], labels[~out], sample_weight=1 / counts[~out])
        given = torch.from_numpy(head.oof_[out]).double().softmax(1).numpy()
        assert np.abs(given - model.predict_proba(inputs[out])).max() < 0.02


def test_the_strength_follows_the_noise():
    clean = LogisticHead(WIDTHS).fit(*clouds([40, 40, 40], noise=0.1), 3)
    noisy = LogisticHead(WIDTHS).fit(*clouds([40, 40, 40], noise=6.0), 3)
    assert clean.strength_ == STRENGTHS[-1]
    assert noisy.strength_ <= 1.0
    assert tuple(clean.nll_) == STRENGTHS
    assert tuple(noisy.nll_) == STRENGTHS[: len(noisy.nll_)], "the path ends where it gets worse"
    assert len(noisy.nll_) < 5
    for head in (clean, noisy):
        assert head.nll_[head.strength_] == min(head.nll_.values())


def test_the_chosen_strength_does_well_on_new_images():
    counts = [30] * 5
    fresh, truth = clouds([200] * 5, noise=1.2, seed=1)
    losses = {}
    for strengths in (STRENGTHS, *((strength,) for strength in STRENGTHS[1:])):
        head = LogisticHead(WIDTHS, strengths=strengths).fit(*clouds(counts, noise=1.2), 5)
        losses[strengths] = -np.log(probabilities(head, fresh)[np.arange(len(truth)), truth]).mean()
    chosen = losses.pop(STRENGTHS)
    assert chosen <= min(losses.values()) * 1.25 < max(losses.values())


def test_an_unseen_class_is_never_predicted():
    features, labels = clouds([20, 20])
    head = LogisticHead(WIDTHS).fit(features, np.where(labels == 1, 3, 0), 5)
    given = probabilities(head, 100 * clouds([50, 50], noise=5, seed=3)[0])
    assert given.shape == (100, 5) and np.isfinite(given).all()
    assert set(given.argmax(1)) == {0, 3} and given[:, [1, 2, 4]].max() < 1e-30


@pytest.mark.parametrize("counts", [[1, 1], [1, 1, 1, 1], [1, 20], [2, 1, 9], [2, 2]])
def test_few_images_a_class(counts):
    features, labels = clouds(counts, noise=0.05)
    head = LogisticHead(WIDTHS).fit(features, labels, len(counts))
    given = probabilities(head, features)
    assert np.isfinite(given).all() and all(np.isfinite(value) for value in head.nll_.values())
    assert given.argmax(1).tolist() == labels.tolist()


def test_a_single_class_is_always_predicted():
    for count in (1, 2, 7):
        features, labels = clouds([count])
        head = LogisticHead(WIDTHS).fit(features, labels + 1, 3)
        assert set(probabilities(head, features).argmax(1)) == {1}


def test_equal_input_gives_equal_heads():
    features, labels = clouds([20, 30, 10])
    heads = [LogisticHead(WIDTHS, seed=4).fit(features.copy(), labels.copy(), 3) for _ in range(2)]
    assert torch.equal(heads[0].head_.linear.weight, heads[1].head_.linear.weight)
    assert torch.equal(heads[0].head_.linear.bias, heads[1].head_.linear.bias)
    assert heads[0].nll_ == heads[1].nll_


def test_fitting_leaves_the_global_random_state():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tolist(), torch.get_rng_state()
    LogisticHead(WIDTHS).fit(*clouds([20, 30]), 2)
    assert np.random.get_state()[1].tolist() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_balanced_weights_move_the_boundary_to_the_rare_class():
    features, labels = clouds([200, 10], noise=3.0)
    fresh, truth = clouds([200, 200], noise=3.0, seed=5)
    recall = {}
    for balanced in (False, True):
        head = LogisticHead(WIDTHS, balanced=balanced).fit(features, labels, 2)
        recall[balanced] = (probabilities(head, fresh).argmax(1)[truth == 1] == 1).mean()
    assert recall[True] > recall[False] + 0.2


def test_of_many_images_one_part_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the limit the summed loss is that of a fifth of the images, yet every row has its score."""
    monkeypatch.setattr(examples, "FOLDED_UP_TO", 400)
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 1000)
    features = generator.normal(0, 1, (len(labels), 3)).astype(np.float32)
    head = LogisticHead((3,), strengths=[0.001, 0.01]).fit(features, labels, 2)
    assert head.nll_[0.001] == pytest.approx(len(labels) / 5 * np.log(2), rel=0.02)
    assert head.oof_.shape == (1000, 2) and (head.oof_ != 0).all()


def test_many_classes_of_few_images_are_no_obstacle_in_a_large_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examples, "FOLDED_UP_TO", 20)
    labels = np.repeat(np.arange(10), 3)  # 30 images, fewer in every class than there are folds
    features = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    head = LogisticHead((4,), strengths=(1.0, 10.0)).fit(features, labels, 10).head_
    assert head.linear.weight.shape == (10, 4)


def test_the_preconditioner_saves_steps_and_changes_no_solution(monkeypatch):
    generator = np.random.default_rng(0)
    scales = np.geomspace(10, 0.1, 120)  # as features are: a few directions dominate
    features = generator.normal(0, 1, (400, 120)) * scales
    labels = (features / scales @ generator.normal(0, 1, (120, 3)) + generator.normal(0, 3, (400, 3))).argmax(1)
    given = examples.Examples(features.astype(np.float32), labels, 3, (120,))
    inputs, calls, own = Inputs(given, (0,)), [], softmax_solver.cross_entropy
    monkeypatch.setattr(softmax_solver, "cross_entropy", lambda *a: calls.append(1) or own(*a))
    found = []
    for preconditioner in (inputs.preconditioner(2 / 9, 300.0), Preconditioner(None, 1.0)):
        calls.clear()
        start = np.zeros((1, inputs.width + 1, 3))
        (solution,) = solve(inputs, labels, given.weights[None], 300.0, start, preconditioner, tolerance=1e-7)
        found.append((len(calls), inputs.scores(solution, np.arange(400))))
    assert found[0][0] < found[1][0] / 3
    assert np.abs(found[0][1] - found[1][1]).max() < 0.01 * np.abs(found[0][1]).max()


@pytest.mark.parametrize("counts", [[100, 90, 80], [20, 15, 10]], ids=["few columns", "many columns"])
def test_the_features_in_memory_give_the_solution_of_those_in_blocks(counts, monkeypatch):
    features, labels = clouds(counts, widths=(30, 40), noise=4.0)
    found = []
    for limit in (10**9, 0):
        monkeypatch.setattr("toolkit.heads.inputs.IN_MEMORY", limit)
        found.append(LogisticHead((30, 40), strengths=[0.1, 3.0, 100.0]).fit(features, labels, 3))
    assert np.abs(found[0].oof_ - found[1].oof_).max() < 0.03 * np.abs(found[0].oof_).max()
    assert np.abs(probabilities(found[0], features) - probabilities(found[1], features)).max() < 3e-3
    assert found[0].strength_ == found[1].strength_


@pytest.mark.parametrize("views", [1, 2])
def test_a_copy_of_the_features_gives_the_head_of_the_features(views, tmp_path, monkeypatch):
    """It lies in the store's folder, without a name; where there is no room for it, features are read as they are."""
    features, labels = clouds([100, 90, 80], widths=(30, 40), noise=4.0)
    features, labels = np.repeat(features, views, axis=0), np.repeat(labels, views)
    images = np.repeat(np.arange(len(labels) // views), views)
    monkeypatch.setattr("toolkit.heads.inputs.IN_MEMORY", 0)
    copies, found = [], []
    monkeypatch.setattr("toolkit.heads.inputs.mapped", lambda *given: copies.append(given) or mapped(*given))
    for folder in (None, tmp_path, tmp_path / "gone"):
        rows = OnDisk(features)
        rows.scratch = folder
        head = LogisticHead((30, 40), strengths=[0.1, 3.0, 100.0]).fit(rows, labels, 3, images)
        found.append((head.strength_, head.oof_, probabilities(head, features)))
    assert [given[2] for given in copies] == [tmp_path, tmp_path / "gone"] and not list(tmp_path.iterdir())
    for strength, oof, shares in found[1:]:
        assert strength == found[0][0]
        assert np.array_equal(oof, found[0][1]) and np.array_equal(shares, found[0][2])


def test_a_solution_that_is_kept_is_finer_than_one_that_is_compared():
    assert softmax_solver.fine(10_000) < softmax_solver.fine(10_001) < softmax_solver.COARSE / 10


@pytest.mark.parametrize("widths", [WIDTHS, (70, 90)], ids=["few columns", "many columns"])
def test_folds_together_are_solved_as_folds_alone(widths, monkeypatch):
    features, labels = clouds([40, 30, 50], noise=3.0, widths=widths)
    heads = []
    monkeypatch.setattr(logistic, "COARSE", 1e-9)  # they start from elsewhere
    for columns in (500, 1):
        monkeypatch.setattr(logistic, "COLUMNS", columns)
        heads.append(LogisticHead(widths, strengths=[1.0, 10.0]).fit(features, labels, 3))
    assert np.abs(heads[0].oof_ - heads[1].oof_).max() < 0.03 * np.abs(heads[0].oof_).max()
    assert heads[0].nll_ == pytest.approx(heads[1].nll_, rel=1e-3)


def test_fewer_rows_than_columns_are_solved_as_they_are():
    features, labels = clouds([30, 25], widths=(70, 90))
    inputs = Inputs(examples.Examples(features, labels, 2, (70, 90)), (0, 1))
    assert inputs.preconditioner(0.25, 3.0).matrix is None


@pytest.mark.parametrize("counts", [[100, 90, 80], [20, 15, 10]], ids=["few columns", "many columns"])
def test_arrays_that_are_read_only_or_reversed_are_taken_as_they_are(counts, recwarn):
    features, labels = clouds(counts, widths=(30, 40))
    expected = LogisticHead((30, 40), strengths=[1.0]).fit(features, labels, 3).oof_
    fixed = features.copy()
    fixed.flags.writeable = False
    for given in (fixed, features[::-1].copy()[::-1], np.asfortranarray(features)):
        found = LogisticHead((30, 40), strengths=[1.0]).fit(given, labels, 3)
        assert np.abs(found.oof_ - expected).max() < 1e-2
    assert not recwarn.list


@pytest.mark.parametrize("seed", range(6))
def test_a_class_with_a_single_image_is_no_reason_to_stop_early(seed, monkeypatch):
    generator = np.random.default_rng(seed)
    of = generator.integers(0, 3, 300)
    features = generator.normal(0, 1, (300, 20)) + np.eye(3)[of] @ generator.normal(0, 1, (3, 20))
    labels = np.zeros(300, dtype=np.int64)
    labels[generator.integers(300)] = 1
    given = examples.Examples(features.astype(np.float32), labels, 2, (20,))
    losses = {}
    for tolerance in (logistic.COARSE, 1e-10):
        monkeypatch.setattr(logistic, "COARSE", tolerance)
        losses[tolerance] = logistic.LogisticPath(given, (0,)).cross_validate((0.1, 1.0))
    coarse, exact = losses.values()
    assert all(coarse[strength] == pytest.approx(exact[strength], rel=0.01) for strength in exact)


@pytest.mark.parametrize("strength", [1e6, 1e20])
@pytest.mark.parametrize("kind", ["twice", "constant"])
def test_directions_that_no_feature_takes_have_no_weight(kind, strength):
    features, labels = clouds([60, 50], widths=(6, 10), noise=6.0)
    features = np.concatenate([features, features if kind == "twice" else np.ones_like(features)], axis=1)
    head = LogisticHead((16, 16), strengths=[strength]).fit(features, labels, 2).head_
    assert head.linear.weight.isfinite().all() and head.linear.weight.abs().max() < 1e3


def test_every_thread_of_the_solver_multiplies_alone(monkeypatch):
    features, labels = clouds([1500, 1500])
    seen, own = [], softmax_solver.cross_entropy
    monkeypatch.setattr(softmax_solver, "cross_entropy", lambda *a: seen.append(torch.get_num_threads()) or own(*a))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        given = examples.Examples(features, labels, 2, WIDTHS)
        inputs = Inputs(given, (0, 1))
        start = np.zeros((1, inputs.width + 1, 2))
        solve(inputs, labels, given.weights[None], 1.0, start, Preconditioner(None, 1.0), tolerance=1e-4)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert len(seen) >= 4 and set(seen) == {1}


@pytest.mark.parametrize("size", [1e-4, 1e-5])
def test_nearly_constant_features_are_told_apart(size):
    generator = np.random.default_rng(0)
    labels = np.arange(200) % 2
    centres = generator.normal(0, 1, (2, 10))
    features = (1 + size * (centres[labels] + 0.1 * generator.normal(0, 1, (200, 10)))).astype(np.float32)
    head = LogisticHead((10,)).fit(features, labels, 2)
    assert (head.oof_.argmax(1) == labels).mean() > 0.95


def test_what_is_all_but_impossible_does_not_slow_the_products(monkeypatch):
    """A probability of 1e-40 is a denormal float32, with which a product takes ten times as long."""
    features, labels = clouds([60, 50, 40], widths=(6, 10), noise=6.0)
    smallest = []

    def watched(self, block, values):
        single = np.abs(values.astype(np.float32))
        smallest.append(single[single > 0].min())
        return original(self, block, values)

    original = Inputs.transposed_times
    monkeypatch.setattr(Inputs, "transposed_times", watched)
    given = examples.Examples(features, labels, 3, (6, 10))
    inputs, far = Inputs(given, (0, 1)), np.zeros((1, 17, 3))
    far[0, :-1] = np.random.default_rng(0).normal(0, 60.0, (16, 3))
    losses, gradient = cross_entropy(inputs, labels, given.weights[None], far[:, : inputs.width + 1], [slice(0, 150)])
    assert min(smallest) > np.finfo(np.float32).tiny
    scores = inputs.times(inputs.block(slice(0, 150)), far[0, : inputs.width])
    expected = torch.nn.functional.cross_entropy(torch.from_numpy(scores), torch.from_numpy(labels), reduction="sum")
    assert losses[0] == pytest.approx(float(expected), rel=1e-12) and np.isfinite(gradient).all()
