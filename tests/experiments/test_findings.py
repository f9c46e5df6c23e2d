"""The experiments: that they can be listed, printed and drawn, and, slow, what each of them finds."""

from __future__ import annotations

import ast
import importlib
import json
import math
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import toolkit.experiments
from toolkit.experiments.catalog import EXPERIMENTS
from toolkit.experiments.finding import Finding, table

FOLDER = Path(toolkit.experiments.__file__).parent
_FOUND: dict[str, Finding] = {}


def found(name: str) -> Finding:
    """Return an experiment's finding, run once."""
    if name not in _FOUND:
        _FOUND[name] = importlib.import_module(EXPERIMENTS[name][0]).run()
    return _FOUND[name]


def column(finding: Finding, header: str) -> dict[str, float]:
    """Return a column of the table by the first one."""
    place = finding.header.index(header)
    return {str(row[0]): row[place] for row in finding.rows}


def test_the_catalog_names_every_file_that_has_an_experiment():
    files = {
        file.stem
        for file in FOLDER.glob("*.py")
        if any(isinstance(node, ast.FunctionDef) and node.name == "run" for node in ast.parse(file.read_text()).body)
    }
    assert files == set(EXPERIMENTS)
    assert all(module == f"toolkit.experiments.{name}" for name, (module, _) in EXPERIMENTS.items())


def test_matplotlib_is_imported_nowhere_at_the_top():
    for file in FOLDER.glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            assert "matplotlib" not in ast.unparse(node) or not isinstance(node, (ast.Import, ast.ImportFrom)), file


def test_a_table_is_aligned():
    lines = table(("name", "n", "loss"), [("long name", 3, 0.123456), ("b", 12, 1e-9)])
    assert lines == ["name        n    loss", "long name   3  0.1235", "b          12   1e-09"]


def test_a_finding_prints_what_was_found_and_has_plain_values():
    one = Finding("x", "Is it so?", "it is.", False, "0.1 against 0.2", ("a", "b"), (("r", math.inf),), lambda f: None)
    assert str(one).endswith("The notes: it is.\nNot shown: 0.1 against 0.2") and str(one).startswith("Is it so?\n\na")
    assert json.loads(json.dumps(one.to_dict(), allow_nan=False))["rows"] == [["r", None]]


@pytest.mark.parametrize("name", ["linear_net", "zigzag", "regularization"])
def test_the_same_seed_finds_the_same_and_another_one_other_numbers(name):
    run = importlib.import_module(EXPERIMENTS[name][0]).run
    assert run(1) == run(1) != run(2)


def test_a_net_without_activations_is_one_linear_map():
    finding = found("linear_net")
    assert finding.shown
    assert max(column(finding, "no activation").values()) < 1e-10
    assert min(value for depth, value in column(finding, "ReLU").items() if depth != "1") > 0.05


def test_inputs_away_from_zero_zigzag():
    finding = found("zigzag")
    steps, signs = column(finding, "steps"), column(finding, "gradients of one sign")
    assert finding.shown
    assert list(steps.values()) == sorted(steps.values()) and steps["2.0"] > 5 * steps["0.0"]
    assert signs["2.0"] == 1.0 and 0.3 < signs["0.0"] < 0.7


def test_l2_spreads_and_l1_is_sparse():
    finding = found("regularization")
    l1 = column(finding, "L1")
    assert finding.shown
    assert sum(l1[f"noise {i}"] == 0 for i in range(1, 6)) >= 4
    assert all(value != 0 for value in column(finding, "L2").values())


@pytest.mark.parametrize("name", ["linear_net", "zigzag", "regularization"])
def test_pictures_are_drawn(name):
    check_picture(found(name))


def check_picture(finding: Finding) -> None:
    """Draw, and see that there is something on every pair of axes, with names."""
    figure = Figure(layout="constrained")
    canvas = FigureCanvasAgg(figure)
    finding.draw(figure)
    canvas.draw()
    assert figure.axes
    assert all(axis.has_data() for axis in figure.axes)
    assert all(axis.get_xlabel() or axis.get_title() for axis in figure.axes)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_can_be_printed_and_drawn(name):
    finding = found(name)
    assert finding.name == name and len(finding.rows) > 1
    assert all(len(row) == len(finding.header) for row in finding.rows)
    assert finding.claim.endswith(".") and not finding.verdict.endswith(".")
    assert max(map(len, table(finding.header, finding.rows))) <= 120
    check_picture(finding)


@pytest.mark.slow
def test_initialisation_is_as_the_errata_say():
    finding = found("initialization")
    by = {(row[0], row[1]): dict(zip(finding.header, row, strict=True)) for row in finding.rows}
    assert not finding.shown  # 0.1 randn does not saturate nearly all
    assert by["tanh", "zeros"]["std 1"] == 0 and by["tanh", "0.01 randn"]["std 10"] < 1e-4
    assert 0.1 < by["tanh", "Xavier"]["std 10"] < 0.5 and 0.4 < by["relu", "He"]["std 10"] < 1.2
    assert by["relu", "Xavier"]["std 10"] < 0.1 * by["relu", "He"]["std 10"]
    share = {start: float(by["tanh", start]["saturated 1 … 10"].split()[0]) for start in ("0.1 randn", "1.0 randn")}
    assert 0.3 < share["0.1 randn"] < 0.4 and share["1.0 randn"] > 0.85


@pytest.mark.slow
def test_mini_batches_are_near_the_optimum_in_fewer_passes():
    finding = found("minibatch")
    passes = list(column(finding, "passes to 0.01").values())
    assert finding.shown and passes[2] < passes[1] < passes[0]


@pytest.mark.slow
def test_a_bigger_net_with_strength_beats_smaller_ones():
    finding = found("capacity")
    smaller, big = finding.rows[:-1], finding.rows[-1]
    assert finding.shown
    assert max(big[2:5]) > big[1] > max(row[1] for row in smaller)


@pytest.mark.slow
def test_relu_beats_sigmoid_by_far_but_not_tanh():
    finding = found("activations")
    epochs = column(finding, "epochs to 0.1")
    assert not finding.shown
    assert epochs["sigmoid"] > 6 * epochs["relu"] and epochs["tanh"] < 6 * epochs["relu"]


@pytest.mark.slow
def test_batchnorm_bears_larger_rates_and_more_initialisations():
    finding = found("batchnorm")
    plain, norm = column(finding, "plain"), column(finding, "with batchnorm")
    assert finding.shown
    assert norm["rate 3"] > 0.8 > 0.2 > plain["rate 3"]
    assert norm["weights' std 0.01"] > 0.9 > 0.2 > plain["weights' std 0.01"]
    assert 0.8 < norm["batch size 4"] < norm["batch size 64"] and norm["batch size 2"] < 0.5


@pytest.mark.slow
def test_random_search_wins_where_one_setting_matters_and_not_where_both_do():
    finding = found("random_search")
    mean = {row[:2]: row[2] for row in finding.rows}
    assert not finding.shown
    assert mean["λ hardly matters", "random"] < mean["λ hardly matters", "grid"] - 0.02
    assert mean["λ matters too", "random"] > mean["λ matters too", "grid"]


@pytest.mark.slow
def test_sgd_is_slower_than_momentum_nesterov_and_adam():
    finding = found("update_rules")
    valley, saddle = column(finding, "steps (valley)"), column(finding, "steps (saddle, rate 0.1)")
    assert finding.shown
    assert valley["Nesterov"] < valley["momentum"] < valley["SGD"] and valley["Adam"] < valley["SGD"]
    assert saddle["Adam"] < saddle["Nesterov"] <= saddle["momentum"] < saddle["SGD"]


@pytest.mark.slow
def test_lbfgs_is_good_on_full_batches_alone():
    finding = found("lbfgs")
    gap = column(finding, "gap after 60")
    assert finding.shown
    assert gap["L-BFGS, full batch"] < 1e-4 < 0.1 * gap["SGD, full batch"]
    assert gap["L-BFGS, batches of 32"] > 0.05 > gap["SGD, batches of 32"]


@pytest.mark.slow
def test_dropout_agrees_three_ways():
    finding = found("dropout")
    apart = column(finding, "standard errors apart")
    assert finding.shown and apart["never scaled"] > 100
    assert all(apart[way] < 4.5 for way in ("scaled at test time", "inverted", "averaged over masks"))
