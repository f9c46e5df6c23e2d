"""A computational graph: each operation keeps its local gradient, and `backward` multiplies them from the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from toolkit.reference.activations import relu_backward, sigmoid, tanh

# What an operation keeps of the forward pass for one of its inputs: upstream gradient → that input's gradient.
Pull = Callable[[Tensor], Tensor]


class Node:
    """A value of the graph: `data` (a float tensor of any shape), and after `backward` of a later node its `grad`.

    Built from a floating-point tensor, which is not copied, or a number, which becomes a float64 scalar. Numbers and
    tensors in an expression are constants. Shapes broadcast as torch's do; a shape that does not fit raises torch's
    RuntimeError, a value that is no float tensor ValueError. `parents` are the inputs of the operation that made the
    node, each with its local gradient as a function. Source: notes: Backpropagation.

    >>> x, y, z = Node(-2), Node(5), Node(-4)
    >>> f = (x + y) * z
    >>> f.backward()
    >>> [node.grad.item() for node in (f, x, y, z)]
    [1.0, -4.0, -4.0, 3.0]
    """

    def __init__(self, data: Tensor | float, parents: Sequence[tuple[Node, Pull]] = ()) -> None:
        data = data.detach() if isinstance(data, Tensor) else torch.tensor(float(data), dtype=torch.float64)
        if not data.is_floating_point():
            raise ValueError(f"expected a floating-point tensor, got {data.dtype}")
        self.data = data
        self.grad: Tensor | None = None
        self.parents = tuple(parents)

    def backward(self, upstream: Tensor | None = None) -> None:
        """Add to the `grad` of this node and of all before it the gradient of Σ upstream · data.

        upstream: the shape of data; 1 for a scalar. Raises ValueError where it lacks for more than one value, and for
        another shape. The gradient of this pass is kept apart until the end: a second pass adds its own alone.
        """
        if upstream is None:
            if self.data.numel() != 1:
                raise ValueError(f"expected upstream of shape {tuple(self.data.shape)}, got none")
            upstream = torch.ones_like(self.data)
        if upstream.shape != self.data.shape:
            raise ValueError(f"expected upstream of shape {tuple(self.data.shape)}, got {tuple(upstream.shape)}")
        gradients = {self: upstream}
        for node in reversed(self._inputs_first()):
            gradient = gradients.pop(node)  # whole: every node that uses this one has been passed
            node.grad = gradient if node.grad is None else node.grad + gradient
            for parent, pull in node.parents:
                share = _summed_to(pull(gradient), parent.data.shape)
                gradients[parent] = gradients[parent] + share if parent in gradients else share

    def _inputs_first(self) -> list[Node]:
        """Return this node and all before it, each after its inputs; a stack of our own, for deep graphs recur deep."""
        order: list[Node] = []
        seen: set[Node] = set()
        stack = [(self, False)]
        while stack:
            node, inputs_done = stack.pop()
            if inputs_done:
                order.append(node)
            elif node not in seen:
                seen.add(node)
                stack.append((node, True))
                stack.extend((parent, False) for parent, _ in node.parents)
        return order

    def __repr__(self) -> str:
        return f"Node({self.data}, grad={self.grad})"

    def __add__(self, other: Node | Tensor | float) -> Node:
        other = self._as_node(other)
        return Node(self.data + other.data, [(self, _times(1.0)), (other, _times(1.0))])

    def __mul__(self, other: Node | Tensor | float) -> Node:
        other = self._as_node(other)
        return Node(self.data * other.data, [(self, _times(other.data)), (other, _times(self.data))])

    def __matmul__(self, other: Node | Tensor) -> Node:
        """Return the product (…, n, m) of (…, n, k) and (…, k, m); ValueError for fewer than two dimensions."""
        other = self._as_node(other)
        a, b = self.data, other.data
        if min(a.ndim, b.ndim) < 2:
            raise ValueError(f"expected matrices, got shapes {tuple(a.shape)} and {tuple(b.shape)}")
        return Node(a @ b, [(self, lambda g: g @ b.transpose(-1, -2)), (other, lambda g: a.transpose(-1, -2) @ g)])

    def __neg__(self) -> Node:
        return Node(-self.data, [(self, _times(-1.0))])

    def __sub__(self, other: Node | Tensor | float) -> Node:
        return self + -self._as_node(other)

    def __truediv__(self, other: Node | Tensor | float) -> Node:
        return self * self._as_node(other) ** -1

    def __pow__(self, exponent: float) -> Node:
        # the exponent is a number; x⁰ is flat, also at 0, where 0 · x⁻¹ would be NaN
        local = exponent * self.data ** (exponent - 1) if exponent else torch.zeros_like(self.data)
        return Node(self.data**exponent, [(self, _times(local))])

    __radd__ = __add__
    __rmul__ = __mul__

    def __rsub__(self, other: float) -> Node:
        return -self + other

    def __rtruediv__(self, other: float) -> Node:
        return self**-1 * other

    def exp(self) -> Node:
        """Return exp(x); its own value is the local gradient."""
        value = torch.exp(self.data)
        return Node(value, [(self, _times(value))])

    def log(self) -> Node:
        """Return the natural logarithm; local gradient 1 / x."""
        return Node(torch.log(self.data), [(self, _times(1 / self.data))])

    def relu(self) -> Node:
        """Return max(0, x); local gradient 1 where x > 0, else 0."""
        x = self.data
        return Node(torch.where(x <= 0, 0.0, x), [(self, lambda g: relu_backward(g, x))])

    def sigmoid(self) -> Node:
        """Return σ(x) as one gate; local gradient σ (1 − σ)."""
        value = sigmoid(self.data)
        return Node(value, [(self, _times(value * (1 - value)))])

    def tanh(self) -> Node:
        """Return tanh(x); local gradient 1 − tanh²."""
        value = tanh(self.data)
        return Node(value, [(self, _times(1 - value**2))])

    def sum(self, dim: int | None = None, keepdim: bool = False) -> Node:
        """Return the sum over one dimension or all: a gate that hands its upstream gradient to every input."""
        shape = self.data.shape
        data = self.data.sum() if dim is None else self.data.sum(dim, keepdim)
        return Node(data, [(self, lambda g: _opened(g, dim, keepdim).expand(shape))])

    def mean(self, dim: int | None = None, keepdim: bool = False) -> Node:
        """Return the mean over one dimension or all."""
        total = self.sum(dim, keepdim)
        return total * (total.data.numel() / self.data.numel())

    def max(self, dim: int | None = None, keepdim: bool = False) -> Node:
        """Return the maximum over one dimension or all: the largest input gets the gradient, equals share it."""
        data = self.data.amax() if dim is None else self.data.amax(dim, keepdim)
        largest = (self.data == _opened(data, dim, keepdim)).to(data.dtype)
        count = largest.sum() if dim is None else largest.sum(dim, keepdim=True)
        return Node(data, [(self, lambda g: _opened(g, dim, keepdim) * largest / count)])

    def reshape(self, *shape: int) -> Node:
        """Return the same values in another shape."""
        before = self.data.shape
        return Node(self.data.reshape(shape), [(self, lambda g: g.reshape(before))])

    def transpose(self, first: int = -2, second: int = -1) -> Node:
        """Return the values with two dimensions swapped."""
        return Node(self.data.transpose(first, second), [(self, lambda g: g.transpose(first, second))])

    def _as_node(self, value: Node | Tensor | float) -> Node:
        """Return a constant of an expression as a node; a number takes the dtype of this one."""
        if isinstance(value, Node):
            return value
        return Node(value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=self.data.dtype))


def _times(local: Tensor | float) -> Pull:
    """Return upstream → upstream · local, for an operation that acts element by element."""
    return lambda upstream: upstream * local


def _opened(reduced: Tensor, dim: int | None, keepdim: bool) -> Tensor:
    """Return a reduced tensor with the dimension that went as one of size 1, so that it broadcasts over the input."""
    return reduced if dim is None or keepdim else reduced.unsqueeze(dim)


def _summed_to(gradient: Tensor, shape: torch.Size) -> Tensor:
    """Return a gradient summed over the dimensions that broadcasting had repeated: a value used often adds up."""
    extra = gradient.ndim - len(shape)
    repeated = [d for d in range(gradient.ndim) if d < extra or shape[d - extra] == 1]
    return (gradient.sum(repeated, keepdim=True) if repeated else gradient).reshape(shape)
