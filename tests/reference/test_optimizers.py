"""Optimizers: the formulas by hand, torch's own where the rule is the same, and everything torch's can do."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.reference.lbfgs import LBFGS, two_loop
from toolkit.reference.optimizers import SGD, AdaGrad, Adam, Momentum, Nesterov, RMSProp

# Ours, and torch's of the same rule.
PAIRS = {
    "sgd": (lambda p, wd: SGD(p, 0.05, weight_decay=wd), lambda p, wd: torch.optim.SGD(p, 0.05, weight_decay=wd)),
    "momentum": (
        lambda p, wd: Momentum(p, 0.02, 0.8, weight_decay=wd),
        lambda p, wd: torch.optim.SGD(p, 0.02, momentum=0.8, weight_decay=wd),
    ),
    "nesterov": (
        lambda p, wd: Nesterov(p, 0.02, 0.8, weight_decay=wd),
        lambda p, wd: torch.optim.SGD(p, 0.02, momentum=0.8, nesterov=True, weight_decay=wd),
    ),
    "adagrad": (
        lambda p, wd: AdaGrad(p, 0.1, eps=1e-7, weight_decay=wd),
        lambda p, wd: torch.optim.Adagrad(p, 0.1, eps=1e-7, weight_decay=wd),
    ),
    "rmsprop": (
        lambda p, wd: RMSProp(p, 0.01, 0.9, eps=1e-7, weight_decay=wd),
        lambda p, wd: torch.optim.RMSprop(p, 0.01, alpha=0.9, eps=1e-7, weight_decay=wd),
    ),
    "adam": (lambda p, wd: Adam(p, 0.01, weight_decay=wd), lambda p, wd: torch.optim.Adam(p, 0.01, weight_decay=wd)),
    "adam, the notes' values": (
        lambda p, wd: Adam(p, 0.01, (0.9, 0.99), eps=1e-7, weight_decay=wd),
        lambda p, wd: torch.optim.Adam(p, 0.01, betas=(0.9, 0.99), eps=1e-7, weight_decay=wd),
    ),
}
OURS = {name: pair[0] for name, pair in PAIRS.items()}


def weights(seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((3, 4), (5,), ())
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def loss_of(parameters):
    """Return a loss that is neither quadratic nor convex, with a gradient for everything but the scalar."""
    a, b, _ = parameters
    return (a.sin() * a).sum() + (b**4 - b).sum() + a[0, 0] * b[1]


def run(optimizer, parameters, n):
    for _ in range(n):
        optimizer.zero_grad()
        loss_of(parameters).backward()
        optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", PAIRS)
def test_fifty_steps_are_torchs(name, weight_decay):
    mine, theirs = weights(), weights()
    run(PAIRS[name][0](mine, weight_decay), mine, 50)
    run(PAIRS[name][1](theirs, weight_decay), theirs, 50)
    for one, other, first in zip(mine, theirs, weights(), strict=True):
        assert (one - other).abs().max() < 1e-12
        assert torch.equal(one, first) == (one.ndim == 0)  # the one without a gradient stays


# Five steps on the gradient 2x from x = 1, each line worked from the notes' listing.
@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam"])
def test_five_steps_by_the_notes_listings(name):
    lr, mu, decay_rate, beta1, beta2, eps = 0.1, 0.9, 0.8, 0.9, 0.99, 1e-7
    x, velocity, cache, m, v = 1.0, 0.0, 0.0, 0.0, 0.0
    expected = []
    for t in range(1, 6):
        dx = 2 * x
        if name == "sgd":
            x += -lr * dx
        elif name == "momentum":
            velocity = mu * velocity - lr * dx
            x += velocity
        elif name == "nesterov":
            velocity_prev = velocity
            velocity = mu * velocity - lr * dx
            x += -mu * velocity_prev + (1 + mu) * velocity
        elif name == "adagrad":
            cache += dx**2
            x += -lr * dx / (math.sqrt(cache) + eps)
        elif name == "rmsprop":
            cache = decay_rate * cache + (1 - decay_rate) * dx**2
            x += -lr * dx / (math.sqrt(cache) + eps)
        else:
            m = beta1 * m + (1 - beta1) * dx
            v = beta2 * v + (1 - beta2) * dx**2
            x += -lr * (m / (1 - beta1**t)) / (math.sqrt(v / (1 - beta2**t)) + eps)
        expected.append(x)
    parameter = torch.nn.Parameter(torch.ones((), dtype=torch.float64))
    optimizer = {
        "sgd": lambda p: SGD(p, lr),
        "momentum": lambda p: Momentum(p, lr, mu),
        "nesterov": lambda p: Nesterov(p, lr, mu),
        "adagrad": lambda p: AdaGrad(p, lr),
        "rmsprop": lambda p: RMSProp(p, lr, decay_rate),
        "adam": lambda p: Adam(p, lr, (beta1, beta2), eps=eps),
    }[name]([parameter])
    found = []
    for _ in range(5):
        optimizer.zero_grad()
        (parameter**2).backward()
        optimizer.step()
        found.append(parameter.item())
    assert found == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("nesterov", [False, True])
def test_where_the_rate_changes_the_velocity_keeps_it_and_torchs_does_not(nesterov):
    mine, theirs = (torch.nn.Parameter(torch.ones((), dtype=torch.float64)) for _ in range(2))
    optimizers = (
        (Nesterov if nesterov else Momentum)([mine], 0.1, 0.5),
        torch.optim.SGD([theirs], 0.1, momentum=0.5, nesterov=nesterov),
    )
    x, velocity = 1.0, 0.0
    for lr in (0.1, 0.01, 0.1, 0.02, 0.3):
        before, velocity = velocity, 0.5 * velocity - lr * 2 * x
        x += -0.5 * before + 1.5 * velocity if nesterov else velocity
        for optimizer, parameter in zip(optimizers, (mine, theirs), strict=True):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            (parameter**2).backward()
            optimizer.step()
    assert mine.item() == pytest.approx(x, rel=1e-13)
    assert abs(theirs.item() - x) > 0.01


@pytest.mark.parametrize("name", OURS)
def test_resumed_from_a_state_dict_is_the_same_to_the_bit(name, tmp_path):
    whole = weights()
    run(OURS[name](whole, 0.1), whole, 20)
    parts = weights()
    optimizer = OURS[name](parts, 0.1)
    run(optimizer, parts, 7)
    torch.save([optimizer.state_dict(), [one.detach() for one in parts]], tmp_path / "state.pt")
    state, values = torch.load(tmp_path / "state.pt", weights_only=True)
    again = [torch.nn.Parameter(value) for value in values]
    optimizer = OURS[name](again, 0.0)
    optimizer.load_state_dict(copy.deepcopy(state))
    run(optimizer, again, 13)
    assert all(torch.equal(one, other) for one, other in zip(whole, again, strict=True))


def test_groups_have_settings_of_their_own_and_a_closure_its_loss():
    a, b = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = SGD([{"params": [a]}, {"params": [b], "lr": 0.25}], lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = (a + b).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert (a.item(), b.item()) == (0.5, 0.75)
    assert optimizer.step() is None


@given(rows=st.integers(1, 3), columns=st.integers(1, 4), name=st.sampled_from(list(OURS)))
@settings(max_examples=30, deadline=None)
def test_elements_do_not_know_each_other(rows, columns, name):
    """One tensor of any shape moves as its elements do one by one."""
    start = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows * 7 + columns)).double()
    whole = torch.nn.Parameter(start.clone())
    single = [torch.nn.Parameter(value.clone()) for value in start.flatten()]
    for parameters in ([whole], single):
        optimizer = OURS[name](parameters, 0.1)
        for _ in range(4):
            optimizer.zero_grad()
            sum((p * p * p * p).sum() for p in parameters).backward()
            optimizer.step()
    assert torch.equal(whole.detach().flatten(), torch.stack([p.detach() for p in single]))


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda p: SGD(p, lr=-1), "finite lr ≥ 0, got -1"),
        (lambda p: SGD(p, lr=math.inf), "finite lr ≥ 0, got inf"),
        (lambda p: SGD(p, lr=0.1, weight_decay=math.nan), "weight_decay ≥ 0, got nan"),
        (lambda p: SGD([{"params": p, "lr": -2}], lr=0.1), "finite lr ≥ 0, got -2"),
        (lambda p: Momentum(p, 0.1, mu=1.0), "mu < 1, got 1.0"),
        (lambda p: RMSProp(p, decay_rate=1.5), "decay_rate < 1, got 1.5"),
        (lambda p: AdaGrad(p, eps=-1e-9), "eps ≥ 0, got -1e-09"),
        (lambda p: Adam(p, betas=(0.9, 1.0)), r"beta < 1, got \(0.9, 1.0\)"),
        (lambda p: LBFGS(p, lr=0), "lr > 0, got 0"),
        (lambda p: LBFGS(p, history=0), "history ≥ 1, got 0"),
        (lambda p: LBFGS([{"params": p[:1]}, {"params": p[1:]}]), "one group of parameters, got 2"),
        (lambda p: LBFGS(p).step(), "closure"),
        (lambda p: two_loop(torch.ones(2), [torch.ones(2)], []), "as many changes"),
        (lambda p: two_loop(torch.ones(2), [torch.ones(2)], [-torch.ones(2)]), "s·y > 0, got -2"),
    ],
)
def test_impossible_settings_are_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build(weights())


def test_a_sparse_gradient_is_refused():
    x = torch.nn.Parameter(torch.zeros(3))
    x.grad = torch.sparse_coo_tensor([[1]], [1.0], (3,), check_invariants=True)
    with pytest.raises(ValueError, match="dense"):
        SGD([x], 0.1).step()


@given(dim=st.integers(1, 6), pairs=st.integers(1, 5), seed=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_two_loops_are_the_bfgs_matrix(dim, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    hessian = root @ root.T + torch.eye(dim)
    steps = [torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(pairs)]
    changes = [hessian @ step for step in steps]
    gradient = torch.randn(dim, generator=generator, dtype=torch.float64)
    identity = torch.eye(dim, dtype=torch.float64)
    inverse = identity * (steps[-1] @ changes[-1]) / (changes[-1] @ changes[-1])
    for s, y in zip(steps, changes, strict=True):
        rho = 1 / (s @ y)
        inverse = (identity - rho * torch.outer(s, y)) @ inverse @ (identity - rho * torch.outer(y, s))
        inverse += rho * torch.outer(s, s)
    expected = inverse @ gradient
    assert (two_loop(gradient, steps, changes) - expected).norm() <= 1e-9 * expected.norm()


def rosenbrock(x):
    return (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2


def descend(optimizer, parameters, function, n):
    losses = []

    def closure():
        optimizer.zero_grad()
        loss = function(*parameters)
        loss.backward()
        return loss

    for _ in range(n):
        losses.append(float(torch.as_tensor(optimizer.step(closure)).detach()))
    return losses


def test_lbfgs_finds_the_bottom_of_a_bent_valley():
    x = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    losses = descend(LBFGS([x]), [x], rosenbrock, 60)
    assert (x - 1).abs().max() < 1e-8
    assert all(after <= before for before, after in itertools.pairwise(losses))


def test_lbfgs_agrees_with_torchs_on_logistic_regression():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 5, generator=generator, dtype=torch.float64)
    labels = (inputs[:, 0] + torch.randn(60, generator=generator, dtype=torch.float64) > 0).double()

    def function(w, b):
        scores = inputs @ w + b
        return (scores.exp().log1p() - labels * scores).mean() + 0.01 * (w**2).sum()

    found = []
    for build in (
        LBFGS,
        lambda p: torch.optim.LBFGS(
            p, max_iter=50, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
        ),
    ):
        parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in (5, ())]
        descend(build(parameters), parameters, function, 60)
        found.append(torch.cat([one.detach().reshape(-1) for one in parameters]))
    assert (found[0] - found[1]).abs().max() < 1e-6


def test_lbfgs_leaves_weights_that_no_step_betters_and_goes_on_from_its_state():
    x = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    optimizer = LBFGS([x])
    calls = iter(range(1000))

    def worse():
        x.grad = torch.ones_like(x)
        return torch.tensor(float(next(calls)))

    assert optimizer.step(worse) == 0.0
    assert x.item() == 1.0
    y = torch.nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    first = LBFGS([y])
    descend(first, [y], rosenbrock, 8)
    z = torch.nn.Parameter(y.detach().clone())
    second = LBFGS([z])
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert descend(first, [y], rosenbrock, 8) == descend(second, [z], rosenbrock, 8)
    assert torch.equal(y, z)
