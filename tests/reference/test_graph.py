"""The graph: the lecture's two examples, each operation, and random graphs against autograd."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference.against import assert_close, numbers
from toolkit.reference.graph import Node

UNARY = {
    "neg": (lambda a: -a, lambda a: -a),
    "exp": (lambda a: (0.1 * a).exp(), lambda a: (0.1 * a).exp()),
    "log": (lambda a: (a * a + 1).log(), lambda a: (a * a + 1).log()),
    "relu": (lambda a: a.relu(), torch.relu),
    "sigmoid": (lambda a: a.sigmoid(), torch.sigmoid),
    "tanh": (lambda a: a.tanh(), torch.tanh),
    "square": (lambda a: a**2, lambda a: a**2),
    "root": (lambda a: (a**2 + 1.0) ** 0.5, lambda a: (a**2 + 1.0) ** 0.5),
    "sum rows": (lambda a: a.sum(0), lambda a: a.sum(0)),
    "sum columns": (lambda a: a.sum(1, keepdim=True), lambda a: a.sum(1, keepdim=True)),
    "mean columns": (lambda a: a.mean(-1, keepdim=True), lambda a: a.mean(-1, keepdim=True)),
    "mean rows": (lambda a: a.mean(0), lambda a: a.mean(0)),
    "max columns": (lambda a: a.max(1, keepdim=True), lambda a: a.amax(1, keepdim=True)),
    "max rows": (lambda a: a.max(0), lambda a: a.amax(0)),
    "max": (lambda a: a.max(), lambda a: a.amax()),
    "sum": (lambda a: a.sum(), lambda a: a.sum()),
    "mean": (lambda a: a.mean(), lambda a: a.mean()),
    "there and back": (lambda a: a.reshape(1, 9).reshape(3, 3), lambda a: a.reshape(1, 9).reshape(3, 3)),
    "transpose": (lambda a: a.transpose(), lambda a: a.T),
    "numbers": (
        lambda a: 2.0 - 3 / (a * a + 1.0) + 4 * a / 5 + (1 + a - 6),
        lambda a: 2 - 3 / (a**2 + 1) + 0.8 * a + a - 5,
    ),
}
BINARY = {
    "add": (lambda a, b: a + b, lambda a, b: a + b),
    "sub": (lambda a, b: a - b, lambda a, b: a - b),
    "mul": (lambda a, b: a * b, lambda a, b: a * b),
    "div": (lambda a, b: a / (b * b + 1.0), lambda a, b: a / (b * b + 1.0)),
    "matmul": (lambda a, b: a @ b, lambda a, b: a @ b),
}


def gradients(function, *inputs: torch.Tensor, upstream: torch.Tensor | None = None) -> tuple[Node, list[torch.Tensor]]:
    """Return the result node and the inputs' gradients."""
    nodes = [Node(value) for value in inputs]
    result = function(*nodes)
    result.backward(upstream)
    return result, [node.grad for node in nodes]


def hold(ours, theirs, *inputs: torch.Tensor) -> None:
    """Hold value and gradients against autograd's."""
    leaves = [value.clone().requires_grad_() for value in inputs]
    expected = theirs(*leaves)
    upstream = numbers(*expected.shape, seed=77)
    result, found = gradients(ours, *inputs, upstream=upstream)
    assert_close(result.data, expected.detach())
    for one, other in zip(found, torch.autograd.grad(expected, leaves, upstream), strict=True):
        assert_close(one, other)


def test_the_lectures_first_example():
    x, y, z = Node(-2), Node(5), Node(-4)
    q = x + y
    f = q * z
    f.backward()
    assert (q.data, f.data) == (3.0, -12.0)
    assert [float(node.grad) for node in (f, q, z, x, y)] == [1.0, -4.0, 3.0, -4.0, -4.0]


def test_the_lectures_sigmoid_neuron():
    """1 / (1 + exp(−(w₀x₀ + w₁x₁ + w₂))), gate by gate, then with the sigmoid as one gate."""
    values = {"w0": 2.0, "x0": -1.0, "w1": -3.0, "x1": -2.0, "w2": -3.0}
    for as_one_gate in (False, True):
        n = {name: Node(value) for name, value in values.items()}
        total = n["w0"] * n["x0"] + n["w1"] * n["x1"] + n["w2"]
        out = total.sigmoid() if as_one_gate else 1 / (1 + (-total).exp())
        out.backward()
        assert float(total.data) == 1.0 and float(out.data) == pytest.approx(0.73, abs=0.005)
        lecture = {"w0": -0.20, "x0": 0.39, "w1": -0.39, "x1": -0.59, "w2": 0.20}
        assert {name: float(node.grad) for name, node in n.items()} == pytest.approx(lecture, abs=0.005)
        local = 1 / (1 + math.exp(-1)) * (1 - 1 / (1 + math.exp(-1)))
        exact = {"w0": -local, "x0": 2 * local, "w1": -2 * local, "x1": -3 * local, "w2": local}
        assert {name: float(node.grad) for name, node in n.items()} == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("name", UNARY)
def test_each_operation_of_one(name):
    hold(*UNARY[name], numbers(3, 3))


@pytest.mark.parametrize("name", BINARY)
def test_each_operation_of_two(name):
    hold(*BINARY[name], numbers(3, 3), numbers(3, 3, seed=1))


@pytest.mark.parametrize("name", [name for name in BINARY if name != "matmul"])
def test_broadcasting_adds_dimensions_and_repeats_them(name):
    hold(*BINARY[name], numbers(3), numbers(2, 3, seed=1))
    hold(*BINARY[name], numbers(2, 1, 1), numbers(4, 3, seed=1))
    hold(*BINARY[name], numbers(), numbers(2, 1, seed=1))
    hold(*BINARY[name], numbers(1, 1), numbers(1, seed=1))
    hold(*BINARY[name], numbers(3, 1), numbers(1, 3, seed=1))


def test_matrices_broadcast_over_a_batch():
    hold(*BINARY["matmul"], numbers(1, 2, 3), numbers(5, 3, 4, seed=1))
    hold(*BINARY["matmul"], numbers(2, 3), numbers(5, 3, 2, seed=1))
    hold(*BINARY["matmul"], numbers(3, 1), numbers(1, 2, seed=1))


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_graphs_are_autograds(data):
    """Every node may be used again by any later one; all stay 3 × 3, or broadcast to it."""
    leaves = [numbers(3, 3, seed=data.draw(st.integers(0, 999))) for _ in range(2)]
    leaves.append(numbers(1, 3, seed=5))
    theirs = [leaf.clone().requires_grad_() for leaf in leaves]
    nodes, expected = [Node(leaf) for leaf in leaves], list(theirs)
    for _ in range(data.draw(st.integers(1, 10))):
        name = data.draw(st.sampled_from([*UNARY, *BINARY]))
        first, second = (data.draw(st.integers(0, len(nodes) - 1)) for _ in range(2))
        full = torch.ones(3, 3, dtype=torch.float64)
        a, b = nodes[first] * full, nodes[second] * full
        c, d = expected[first] * full, expected[second] * full
        if name in UNARY:
            ours, reference = UNARY[name]
            node, value = ours(a), reference(c)
        else:
            ours, reference = BINARY[name]
            node, value = ours(a, b), reference(c, d)
        nodes.append((0.1 * node).tanh())  # small: squares of squares would overflow
        expected.append(torch.tanh(0.1 * value))
    total, reference_total = Node(0.0), torch.zeros((), dtype=torch.float64)
    for node, value in zip(nodes, expected, strict=True):
        total, reference_total = total + node.sigmoid().mean(), reference_total + torch.sigmoid(value).mean()
    total.backward()
    reference_total.backward()
    assert_close(total.data, reference_total.detach())
    for node, leaf in zip(nodes, theirs, strict=False):
        assert_close(node.grad, leaf.grad)


@pytest.mark.parametrize("exponent", [-2, -1, 0, 0.5, 1, 2, 3])
def test_powers(exponent):
    hold(lambda a: a**exponent, lambda a: a**exponent, numbers(4).abs() + 0.5)
    if exponent >= 1 or exponent == 0:
        hold(lambda a: a**exponent, lambda a: a**exponent, torch.tensor([0.0, -2.0], dtype=torch.float64))


def test_equals_share_the_gradient_of_their_maximum():
    x = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    for dim in (0, 1, -1):
        hold(lambda a, dim=dim: a.max(dim), lambda a, dim=dim: a.amax(dim), x)
    hold(lambda a: a.max(), lambda a: a.amax(), x)


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
def test_over_all_dimensions_there_is_none_to_keep(name):
    x = numbers(2, 3)
    result, (gradient,) = gradients(lambda a: getattr(a, name)(keepdim=True), x)
    expected, (other,) = gradients(lambda a: getattr(a, name)(), x)
    assert result.data.shape == () and torch.equal(result.data, expected.data) and torch.equal(gradient, other)


def test_relu_is_flat_at_zero_and_shows_nan():
    _, (gradient,) = gradients(lambda a: a.relu().sum(), torch.tensor([-1.0, 0.0, 2.0]))
    assert gradient.tolist() == [0.0, 0.0, 1.0]
    assert Node(math.nan).relu().data.isnan()


@pytest.mark.parametrize("dims", [(0, 1), (0, 2), (1, -1), ()])
def test_any_two_dimensions_swap(dims):
    hold(lambda a: a.transpose(*dims), lambda a: a.transpose(*(dims or (-2, -1))), numbers(2, 3, 4))


def test_a_value_used_often_adds_up():
    x = Node(3.0)
    (x * x * x + x + x).backward()
    assert float(x.grad) == 29.0


def test_a_second_pass_adds_its_own_gradient_alone():
    x = Node(3.0)
    square = x * x
    cube = square * x
    cube.backward()
    cube.backward()
    assert float(x.grad) == 2 * 27 and float(square.grad) == 2 * 3 and float(cube.grad) == 2
    square.backward()
    assert float(x.grad) == 2 * 27 + 6


def test_no_node_is_visited_twice_and_deep_graphs_do_not_recur():
    node = start = Node(1.0)
    for _ in range(60):
        node = node + node  # 2⁶⁰ paths
    node.backward()
    assert float(start.grad) == 2.0**60
    node = start = Node(1.0)
    for _ in range(3000):
        node = node + 0.0
    node.backward()
    assert float(start.grad) == 1.0


def test_constants_take_the_dtype_of_the_expression():
    x = Node(torch.tensor([1.0, 2.0]))
    y = (2 * x + 1 - torch.tensor([1.0, 1.0])) / 4
    y.sum().backward()
    assert y.data.dtype == x.grad.dtype == torch.float32 and x.grad.tolist() == [0.5, 0.5]
    assert Node(1).data.dtype == torch.float64 and Node(1).data.shape == ()
    single = Node(torch.tensor(3.0))
    for value in (single + 2, 2 - single, single * 2, 2 / single):
        assert value.data.dtype == torch.float32
    assert repr(Node(1.0)) == "Node(1.0, grad=None)"


def test_the_graph_is_apart_from_autograd():
    x = torch.ones(2, requires_grad=True)
    node = Node(x)
    assert not node.data.requires_grad and node.grad is None and node.parents == ()
    assert len((node * node).parents) == 2


def test_what_does_not_fit_is_refused():
    x = Node(numbers(2, 3))
    with pytest.raises(ValueError, match=r"expected upstream of shape \(2, 3\), got none"):
        x.backward()
    with pytest.raises(ValueError, match=r"expected upstream of shape \(2, 3\), got \(3,\)"):
        x.backward(numbers(3))
    with pytest.raises(ValueError, match=r"expected a floating-point tensor, got torch.int64"):
        Node(torch.tensor([1, 2]))
    for a, b in ((x, Node(numbers(3))), (Node(numbers(2)), x)):
        with pytest.raises(ValueError, match=r"expected matrices, got shapes \("):
            a @ b
    with pytest.raises(RuntimeError):
        x + Node(numbers(2, 4))
    one = Node(numbers(1, 1))
    one.backward()
    assert_close(one.grad, torch.ones(1, 1, dtype=torch.float64))
