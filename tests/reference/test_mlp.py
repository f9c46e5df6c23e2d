"""The multilayer perceptron: the notes' network, an equal net of torch's layers, and backward through it by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.reference.against import assert_close, assert_smooth, numbers
from toolkit.reference import activations
from toolkit.reference.batchnorm import BatchNorm, batch_norm_backward
from toolkit.reference.dropout import InvertedDropout, inverted_dropout_backward, monte_carlo
from toolkit.reference.linear import Linear, linear_backward
from toolkit.reference.losses import cross_entropy, cross_entropy_backward
from toolkit.reference.mlp import MLP

THEIRS = {
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "identity": nn.Identity,
}


class Theirs(nn.Module):
    """The same net of torch's layers."""

    def __init__(self, sizes: tuple[int, ...], activation: str, batchnorm: bool, keep_prob: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number in range(len(sizes) - 2):
            layers.append(nn.Linear(sizes[number], sizes[number + 1], dtype=torch.float64))
            layers.extend([nn.BatchNorm1d(sizes[number + 1], dtype=torch.float64)] if batchnorm else [])
            layers.append(THEIRS[activation]())
            layers.extend([nn.Dropout(1 - keep_prob)] if keep_prob < 1 else [])
        self.layers = nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


@pytest.mark.parametrize("activation", THEIRS)
@settings(max_examples=8, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 6), min_size=2, max_size=5).map(tuple),
    n=st.integers(1, 5),
    batchnorm=st.booleans(),
    keep_prob=st.sampled_from([1.0, 0.5]),
)
def test_it_is_the_net_of_torchs_layers(activation, sizes, n, batchnorm, keep_prob):
    net = MLP(sizes, activation=activation, batchnorm=batchnorm, keep_prob=keep_prob, dtype=torch.float64)
    theirs = Theirs(sizes, activation, batchnorm, keep_prob)
    torch.manual_seed(2)
    for parameter in theirs.parameters():  # a shift of 0 would put units that do not vary on ReLU's corner
        torch.nn.init.normal_(parameter)
    state = theirs.state_dict()
    assert list(net.state_dict()) == list(state)
    net.load_state_dict(state)
    x = numbers(n, sizes[0])
    for training in (True, False):
        if training and batchnorm and n == 1 and len(sizes) > 2:
            continue
        results = []
        for model in (net.train(training), theirs.train(training)):
            torch.manual_seed(3)
            inputs = x.clone().requires_grad_()
            scores = model(inputs)
            results.append((scores, *torch.autograd.grad(scores.square().sum(), [inputs, *model.parameters()])))
        for one, other in zip(*results, strict=True):
            assert_close(one, other, 1e-7 if batchnorm else 1e-10)  # 1 / √(var + ε) is up to 316 a layer


def test_the_notes_network():
    """3 → 4 → 4 → 1 with sigmoids, as the listing computes it: a column, W·x + b."""
    net = MLP((3, 4, 4, 1), activation="sigmoid", generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = numbers(3, 1)

    def f(x: torch.Tensor) -> torch.Tensor:
        return 1.0 / (1.0 + torch.exp(-x))

    first, second, third = (layer for layer in net.layers if isinstance(layer, Linear))
    h1 = f(first.weight @ x + first.bias[:, None])
    h2 = f(second.weight @ h1 + second.bias[:, None])
    out = third.weight @ h2 + third.bias[:, None]
    assert (h1.shape, h2.shape, out.shape) == ((4, 1), (4, 1), (1, 1))
    assert_close(net(x.T), out.T)
    names = list(net.state_dict())
    assert names == [f"layers.{number}.{name}" for number in (0, 2, 4) for name in ("weight", "bias")]

    def values(x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, dict(zip(names, parameters, strict=True)), (x,))

    assert_smooth(values, x.T, *net.parameters())


def test_a_neuron_is_a_sum_and_its_firing_rate():
    inputs, weights, bias = [1.0, -2.0, 0.5], [0.3, 0.1, -0.7], 0.2
    total = sum(i * w for i, w in zip(inputs, weights, strict=True)) + bias
    layer = Linear(3, 1, dtype=torch.float64)
    layer.load_state_dict({"weight": torch.tensor([weights]), "bias": torch.tensor([bias])})
    rate = activations.sigmoid(layer(torch.tensor(inputs, dtype=torch.float64)))
    assert rate.item() == pytest.approx(1 / (1 + math.exp(-total)), abs=1e-7)


def backward_by_hand(net: MLP, x: torch.Tensor, labels: torch.Tensor, masks: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return the parameters' gradients of the cross-entropy, each layer's local gradient times the upstream one."""
    inputs = [x]
    waiting = iter(masks)
    for layer in net.layers:
        x = inputs[-1]
        inputs.append(x * next(waiting) / layer.keep_prob if isinstance(layer, InvertedDropout) else layer(x))
    upstream = cross_entropy_backward(1.0, inputs.pop(), labels)
    found: list[torch.Tensor] = []
    left = list(masks)
    for layer in reversed(net.layers):
        x = inputs.pop()
        if isinstance(layer, Linear):
            upstream, dweight, dbias = linear_backward(upstream, x, layer.weight)
            found = [dweight, dbias, *found]
        elif isinstance(layer, BatchNorm):
            upstream, dweight, dbias = batch_norm_backward(upstream, x, layer.weight, layer.eps)
            found = [dweight, dbias, *found]
        elif isinstance(layer, InvertedDropout):
            upstream = inverted_dropout_backward(upstream, left.pop(), layer.keep_prob)
        else:
            upstream = activations.relu_backward(upstream, x)
    return found


def test_backward_through_the_whole_net_by_hand():
    net = MLP((5, 7, 6, 4), batchnorm=True, keep_prob=0.6, dtype=torch.float64)
    x, labels = numbers(9, 5), torch.arange(9) % 4
    torch.manual_seed(4)
    masks = [torch.empty(9, width, dtype=torch.float64).bernoulli_(0.6) for width in (7, 6)]
    torch.manual_seed(4)
    expected = torch.autograd.grad(cross_entropy(net(x), labels), list(net.parameters()))
    with torch.no_grad():
        for one, other in zip(backward_by_hand(net, x, labels, masks), expected, strict=True):
            assert_close(one, other)


def test_order_and_defaults():
    net = MLP((3, 4, 5, 2), batchnorm=True, keep_prob=0.9)
    block = ["Linear", "BatchNorm", "ReLU", "InvertedDropout"]
    assert [type(layer).__name__ for layer in net.layers] == [*block, *block, "Linear"]
    assert [layer.keep_prob for layer in net.layers if isinstance(layer, InvertedDropout)] == [0.9, 0.9]
    plain = MLP([3, 4, 2])
    assert [type(layer).__name__ for layer in plain.layers] == ["Linear", "ReLU", "Linear"]
    assert {value.dtype for value in plain.parameters()} == {torch.float32}
    assert plain(torch.zeros(2, 5, 3)).shape == (2, 5, 2)


def test_weights_start_as_the_initialiser_says_layer_after_layer():
    net = MLP((400, 300, 200), init="small", generator=torch.Generator().manual_seed(1))
    assert net.layers[0].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert net.layers[2].weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert MLP((400, 300, 2)).layers[0].weight.std().item() == pytest.approx(math.sqrt(2 / 400), rel=0.02)
    generator = torch.Generator().manual_seed(2)
    net = MLP((3, 4, 2), generator=generator)
    generator.manual_seed(2)
    assert torch.equal(net.layers[0].weight, Linear(3, 4, generator=generator).weight)
    assert torch.equal(net.layers[2].weight, Linear(4, 2, generator=generator).weight)


def test_maxout_stands_in_place_of_linear_and_activation():
    generator = torch.Generator().manual_seed(0)
    net = MLP((3, 4, 5, 2), activation="maxout", init="xavier", keep_prob=0.8, generator=generator, dtype=torch.float64)
    assert [type(layer).__name__ for layer in net.layers] == ["Maxout", "InvertedDropout"] * 2 + ["Linear"]
    assert [tuple(p.shape) for p in net.parameters() if p.ndim == 2] == [(8, 3), (10, 4), (2, 5)]
    generator.manual_seed(0)
    expected = activations.Maxout(3, 4, init="xavier", generator=generator, dtype=torch.float64)
    assert torch.equal(net.layers[0].linear.weight, expected.linear.weight)
    x = numbers(6, 3)
    assert_close(net.eval()(x), net.layers[4](net.layers[2](net.layers[0](x))))


def test_monte_carlo_runs_on_it():
    net = MLP((3, 16, 2), batchnorm=True, keep_prob=0.5, dtype=torch.float64)
    mean, spread = monte_carlo(net, numbers(4, 3))
    assert mean.shape == spread.shape == (4, 2) and (spread > 0).all() and net.training


def test_it_learns_what_a_linear_classifier_cannot():
    """Exclusive or, by plain gradient descent."""
    net = MLP((2, 8, 2), activation="tanh", generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.float64)
    labels = torch.tensor([0, 1, 1, 0])
    for _ in range(300):
        gradients = torch.autograd.grad(cross_entropy(net(x), labels), list(net.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(net.parameters(), gradients, strict=True):
                parameter -= 0.5 * gradient
    assert torch.equal(net(x).argmax(1), labels) and cross_entropy(net(x), labels) < 0.1


def test_what_does_not_fit_is_refused():
    for wrong, message in (
        ({"sizes": (3,)}, r"expected at least two sizes, input and output, got \(3,\)"),
        ({"sizes": ()}, r"expected at least two sizes"),
        ({"sizes": (3, 0, 2)}, "sizes ≥ 1"),
        ({"sizes": (3, 4, 0)}, "sizes ≥ 1"),
        ({"activation": "swish"}, "expected activation to be one of sigmoid, .*, identity, maxout, got 'swish'"),
        ({"sizes": (3, 2), "activation": "swish"}, "got 'swish'"),
        ({"init": "best"}, "expected init to be one of .*, got 'best'"),
        ({"activation": "maxout", "batchnorm": True}, "expected batchnorm=False with activation='maxout'"),
        ({"keep_prob": 0.0}, "expected 0 < keep_prob ≤ 1, got 0.0"),
        ({"sizes": (3, 2), "keep_prob": 0.0}, "expected 0 < keep_prob ≤ 1, got 0.0"),
        ({"keep_prob": 1.5}, "expected 0 < keep_prob ≤ 1, got 1.5"),
        ({"keep_prob": math.nan}, "expected 0 < keep_prob ≤ 1, got nan"),
    ):
        with pytest.raises(ValueError, match=message):
            MLP(**{"sizes": (3, 4, 2), **wrong})
    with pytest.raises(ValueError, match=r"expected an input of shape \(..., 3\), got \(5, 4\)"):
        MLP((3, 4, 2))(torch.zeros(5, 4))
