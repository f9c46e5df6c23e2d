"""The report, its table and its list; and that a network is what it was after it was tried."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from toolkit.checks.files import file_findings
from toolkit.checks.finding import FAIL, PASS, WARN, WIDTH, CheckReport, Finding, Suspect, by_suspicion
from toolkit.checks.learner import Learner, first_of, tensors_of
from toolkit.checks.learning import overfit
from toolkit.checks.model import first_loss, gradients, last_batch, regularized_loss
from toolkit.data.manifest import TRAIN, VAL, Manifest

SUSPECTS = (
    Suspect("b.png", "train", "cat", "label_errors", "looks like dog, 99 %", 0.99),
    Suspect("a,\nb.png", "val", "dog", "leaks", "the same file: c.png", 0.5),
)


def report() -> CheckReport:
    findings = (
        Finding("unreadable", PASS, "all 3 image files can be read"),
        Finding("label_errors", WARN, "many words " * 30, "look at them"),
        Finding("leaks", FAIL, "1 picture in two splits", "remove it from val"),
    )
    return CheckReport(findings, by_suspicion(reversed(SUSPECTS)))


def test_the_worst_finding_counts() -> None:
    assert report().status == FAIL
    assert CheckReport(report().findings[:2]).status == WARN
    assert CheckReport(()).status == PASS
    with pytest.raises(KeyError):
        report().finding("nothing of that name")


def test_the_table_has_every_finding_and_fits() -> None:
    text = str(report())
    assert all(
        word in text for word in ("pass", "warn", "fail", "→ remove it from val", "1 passed, 1 to look at, 1 failed")
    )
    assert max(map(len, text.splitlines())) <= WIDTH


def test_json_and_list_hold_everything(tmp_path: Path) -> None:
    values = json.loads(json.dumps(report().to_dict(), allow_nan=False))
    assert values["status"] == FAIL and len(values["findings"]) == 3
    report().write_fix_list(tmp_path / "fix.csv")
    with open(tmp_path / "fix.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["path", "split", "label", "finding", "detail"]
    assert [row["path"] for row in rows] == ["b.png", "a,\nb.png"]


def test_a_status_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="pass, warn, fail"):
        Finding("leaks", "maybe", "")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
    )


def test_a_network_is_what_it_was() -> None:
    network = net().eval()
    network[1].weight.grad = torch.ones_like(network[1].weight)
    network[5].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    gradient, state = network[1].weight.grad, torch.random.get_rng_state()
    inputs, labels = torch.randn(20, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    learner = Learner(network, 3)
    for check in (first_loss, regularized_loss, gradients, last_batch):
        check(learner, inputs, labels)
    overfit(learner, lambda step: (inputs, labels), steps=5)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network[1].weight.grad is gradient and network[5].weight.grad is None
    assert not any(module.training for module in network.modules())
    assert torch.equal(state, torch.random.get_rng_state())
    assert not any(module._forward_hooks for module in network.modules())


def test_what_is_tried_does_not_depend_on_what_ran_before() -> None:
    inputs, labels = torch.randn(20, 3, 2, 2, generator=torch.Generator().manual_seed(1)), torch.arange(20) % 3
    first = overfit(Learner(net(), 3), lambda step: (inputs, labels))
    torch.manual_seed(99)
    torch.randn(7)
    network = net()
    torch.manual_seed(5)
    assert overfit(Learner(network, 3), lambda step: (inputs, labels)) == first


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="cross_entropy or hinge"):
        Learner(net(), 3, loss="mse")


def test_the_first_of_nested_inputs() -> None:
    inputs = (torch.arange(6).reshape(3, 2), (torch.arange(3), None))
    first = first_of(inputs, 1)
    assert first[0].tolist() == [[0, 1]] and first[1][0].tolist() == [0] and first[1][1] is None
    assert len(tensors_of(inputs)) == 2


def test_a_class_that_nothing_validates_is_told() -> None:
    labels = np.repeat(np.arange(3), [6, 6, 1])
    splits = np.array([TRAIN] * 5 + [VAL] + [TRAIN] * 5 + [VAL] + [TRAIN], np.int8)
    manifest = Manifest(Path("/none"), ("a", "b", "c"), tuple(f"{row}.png" for row in range(13)), labels, splits)
    found = {one.name: one for one in file_findings(manifest, [])[0]}["missing_class"]
    assert found.status == WARN and found.seen == "too few images to validate 1 class: c"
