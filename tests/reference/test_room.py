"""What every file of the room owes: torch alone, no layer or rule of torch's own, and examples that run."""

from __future__ import annotations

import ast
import doctest
import importlib
import sys
from pathlib import Path

import pytest

import toolkit.reference

FOLDER = Path(toolkit.reference.__file__).parent
FILES = sorted(file for file in FOLDER.glob("*.py") if file.name != "__init__.py")
TORCH = {"torch": {"Tensor", "nn"}, "torch.optim": {"Optimizer"}, "torch.utils.hooks": {"RemovableHandle"}}
CONTAINERS = {"Module", "ModuleList", "Parameter", "Sequential"}
SHORTCUTS = {
    "softmax",
    "log_softmax",
    "logsumexp",
    "sigmoid",
    "relu",
    "tanh",
    "batch_norm",
    "dropout",
    "cdist",
    "bernoulli",
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_is_written_out(file):
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert {alias.name for alias in node.names} <= {*sys.stdlib_module_names, "torch"}
        elif isinstance(node, ast.ImportFrom):
            module = str(node.module)
            standard = module.split(".")[0] in {"__future__", *sys.stdlib_module_names}
            assert standard or module in TORCH or module.startswith("toolkit.reference."), module
            assert module not in TORCH or {alias.name for alias in node.names} <= TORCH[module], module
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.value.id != "nn" or node.attr in CONTAINERS, f"nn.{node.attr}"
            assert node.value.id != "torch" or node.attr not in {*SHORTCUTS, "nn", "optim"}, f"torch.{node.attr}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_its_examples_run(file):
    module = importlib.import_module(f"toolkit.reference.{file.stem}")
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0


def test_the_room_says_what_it_holds():
    for file in FILES:
        assert f" {file.stem}" in toolkit.reference.__doc__.replace(",", ""), file.stem
