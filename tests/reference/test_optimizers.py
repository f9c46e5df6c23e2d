"""Optimizers: the formulas by hand, torch's own where the rule is the same, and everything torch's can do."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
    ],
)
def test_impossible_settings_are_refused(build, said):
    with pytest.raises(ValueError, match=said):
        build(weights())


def test_the_default_settings():
    x, none = [torch.nn.Parameter(torch.zeros(1))], {"weight_decay": 0.0}
    assert SGD(x, 0.1).defaults == {"lr": 0.1, **none}
    assert Momentum(x, 0.1).defaults == Nesterov(x, 0.1).defaults == {"lr": 0.1, "mu": 0.9, **none}
    assert AdaGrad(x).defaults == {"lr": 0.01, "eps": 1e-7, **none}
    assert RMSProp(x).defaults == {"lr": 0.01, "decay_rate": 0.99, "eps": 1e-7, **none}
    assert Adam(x).defaults == {"lr": 0.001, "betas": (0.9, 0.999), "eps": 1e-8, **none}


def test_the_lower_ends_of_the_ranges_are_allowed():
    """Without memory the rules are those of the gradient, or of its sign, alone."""
    for build, expected in (
        (lambda p: SGD(p, 0.0), 1.0),
        (lambda p: Momentum(p, 0.25, mu=0.0), 0.0),
        (lambda p: Nesterov(p, 0.25, mu=0.0), 0.0),
        (lambda p: AdaGrad(p, 0.25, eps=0.0), 0.75),
        (lambda p: RMSProp(p, 0.25, decay_rate=0.0, eps=0.0), 0.75),
        (lambda p: Adam(p, 0.25, betas=(0.0, 0.0), eps=0.0), 0.75),
    ):
        x = torch.nn.Parameter(torch.tensor(1.0))
        x.grad = torch.tensor(4.0)
        build([x]).step()
        assert x.item() == expected


def test_without_weight_decay_an_infinite_weight_stays_one():
    mine, theirs = (torch.nn.Parameter(torch.tensor([math.inf, 1.0])) for _ in range(2))
    for x, optimizer in ((mine, SGD([mine], 0.5)), (theirs, torch.optim.SGD([theirs], 0.5))):
        x.grad = torch.ones(2)
        optimizer.step()
    assert mine.tolist() == theirs.tolist() == [math.inf, 0.5]


def test_a_sparse_gradient_is_refused():
    x = torch.nn.Parameter(torch.zeros(3))
    x.grad = torch.sparse_coo_tensor([[1]], [1.0], (3,), check_invariants=True)
    with pytest.raises(ValueError, match="dense"):
        SGD([x], 0.1).step()
