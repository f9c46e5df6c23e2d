"""Devices and precisions: what a machine has not got is one clear line."""

from __future__ import annotations

import pytest
import torch

from toolkit.errors import SettingError
from toolkit.hardware import autocast, resolve_device, resolve_precision

CPU = torch.device("cpu")


@pytest.fixture
def bare(monkeypatch) -> None:
    """A machine with a CPU and nothing else."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_and_cpu(bare):
    assert resolve_device("auto") == resolve_device("cpu") == CPU
    assert resolve_precision("auto", CPU) == "32-true"


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:1", "mps", "cpu:1"])
def test_a_device_that_is_not_there(bare, name):
    with pytest.raises(SettingError, match=rf"^device '{name}': this machine has [01] device.*--device cpu$"):
        resolve_device(name)


@pytest.mark.parametrize(("name", "near"), [("cud", "cuda"), ("gpu", "cpu"), ("", "auto"), ("CPU", "cpu")])
def test_an_unknown_device(bare, name, near):
    with pytest.raises(SettingError, match=f"unknown device {name!r}.*{near}") as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["cuda:x", "cuda:-1", "cpu:", "cuda:0:1"])
def test_a_device_of_no_form(bare, name):
    with pytest.raises(SettingError, match=r"^device "):
        resolve_device(name)


def test_devices_that_are_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert resolve_device("auto") == resolve_device("cuda:1") == torch.device("cuda", 1)
    assert resolve_device("cuda").type == "cuda"
    with pytest.raises(SettingError, match="this machine has 2 device"):
        resolve_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_precision("auto", torch.device("cuda")) == "bf16-mixed"
    assert resolve_precision("16-mixed", torch.device("cuda")) == "16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolve_precision("auto", torch.device("cuda")) == "32-true"


def test_precisions():
    assert resolve_precision("bf16-mixed", CPU) == "bf16-mixed"
    with pytest.raises(SettingError, match=r"unknown precision 'bf16mixed'.*bf16-mixed"):
        resolve_precision("bf16mixed", CPU)
    with pytest.raises(SettingError, match="needs a GPU"):
        resolve_precision("16-mixed", CPU)
    for precision, dtype in (("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)):
        with autocast(precision, CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
