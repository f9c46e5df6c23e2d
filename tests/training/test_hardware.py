"""Devices and precisions: what a machine has not got is one clear line."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn

from tests.training.tiny import SMALL, folder_data, tiny_backbone
from toolkit.backbones.catalog import as_backbone, build_backbone
from toolkit.errors import SettingError
from toolkit.features import prefix
from toolkit.features.prefix import HALF_PRECISION_ERROR, FrozenPrefix, bfloat16_error, prefix_dtype
from toolkit.hardware import autocast, resolve_device, resolve_precision, true_float32
from toolkit.training.fit import FitSettings, fit
from toolkit.training.module import TransferModule

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
    assert resolve_device("cuda") == torch.device("cuda", 1), "as the tensors on it say"
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


def allows_tf32() -> bool:
    return bool(torch.backends.cudnn.allow_tf32)


def test_true_float32_ends_as_it_began():
    assert allows_tf32(), "torch's own default"
    with pytest.raises(ZeroDivisionError), true_float32():
        assert not allows_tf32() and torch.backends.cudnn.conv.fp32_precision != "tf32"
        with true_float32():
            assert not allows_tf32()
        assert not allows_tf32(), "the outer one goes on"
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=True):
            assert allows_tf32(), "what runs inside may use torch's own switches"
        raise ZeroDivisionError
    assert allows_tf32() and torch.backends.cudnn.conv.fp32_precision == "tf32"
    torch.backends.cudnn.allow_tf32 = False
    try:
        with true_float32():
            pass
        assert not allows_tf32(), "what the program had chosen stays"
    finally:
        torch.backends.cudnn.allow_tf32 = True


def test_true_float32_multiplies_matrices_in_float32_whatever_the_program_has_chosen():
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(64, 512, generator=generator), torch.randn(512, 64, generator=generator))
    exact = left @ right
    assert torch.get_float32_matmul_precision() == "highest", "torch's own default"
    torch.set_float32_matmul_precision("medium")
    try:
        with true_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            with true_float32():
                assert torch.equal(left @ right, exact)
            assert torch.equal(left @ right, exact)
        assert torch.get_float32_matmul_precision() == "medium", "what the program had chosen comes back"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_true_float32_of_several_threads_ends_with_the_last():
    first, second, seen = threading.Event(), threading.Event(), []

    def longer() -> None:
        first.wait(10)
        with true_float32():
            second.set()
            other.join(10)
            seen.append(allows_tf32())

    def shorter() -> None:
        with true_float32():
            first.set()
            second.wait(10)

    other = threading.Thread(target=shorter)
    threads = [threading.Thread(target=longer), other]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert seen == [False] and allows_tf32()


def test_true_float32_leaves_alone_who_has_chosen_by_the_newer_switches():
    convolutions = torch.backends.cudnn.conv
    before = convolutions.fp32_precision
    try:
        convolutions.fp32_precision = "ieee"  # and rnn's stays
        with true_float32():
            assert convolutions.fp32_precision == "ieee"
        assert convolutions.fp32_precision == "ieee"
    finally:
        convolutions.fp32_precision = before
    assert allows_tf32()


class _Spy(nn.Module):
    """A stage that notes whether a GPU would convolve in TF32 while it runs."""

    seen: list[bool] = []  # noqa: RUF012

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append(allows_tf32())
        return pixels


def test_float32_is_float32_in_extraction_in_training_and_in_prediction(tmp_path):
    """cuDNN takes TF32 by itself, and then a GPU's features differ from a CPU's by 2e-3."""
    _Spy.seen.clear()
    backbone = as_backbone([_Spy(), *tiny_backbone().stages], preprocessing=SMALL)
    pixels = torch.zeros((2, 3, 32, 32), dtype=torch.uint8)
    module = TransferModule(backbone, 3, cut=0)
    _Spy.seen.clear()  # of what tried the stages out
    prefix_of_all = FrozenPrefix(backbone, cut=None, taps=(4,))
    _Spy.seen.clear()
    prefix_of_all(pixels)
    assert set(_Spy.seen) == {False}
    data = folder_data(tmp_path / "photos")
    _Spy.seen.clear()
    fit(
        module,
        data,
        FitSettings(epochs=1, precision="32-true"),
        folder=tmp_path,
        history=tmp_path / "h.csv",
        device=CPU,
    )
    assert set(_Spy.seen) == {False}
    model = module.trained_model(data.classes)
    _Spy.seen.clear()
    model.logits(pixels)
    assert set(_Spy.seen) == {False} and allows_tf32()


@pytest.mark.parametrize(
    ("has", "error", "dtype"),
    [(True, 4e-3, torch.bfloat16), (True, 5e-2, torch.float32), (False, 4e-3, torch.float32)],
)
def test_half_precision_only_where_it_is_exact_enough(monkeypatch, has, error, dtype):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: has)
    monkeypatch.setattr(prefix, "bfloat16_error", lambda backbone, device: error)
    cuda = torch.device("cuda")
    assert prefix_dtype(tiny_backbone(), "auto", cuda) == dtype
    assert prefix_dtype(tiny_backbone(), "bf16-mixed", cuda) == torch.bfloat16
    assert prefix_dtype(tiny_backbone(), "32-true", cuda) == torch.float32
    assert prefix_dtype(tiny_backbone(), "auto", torch.device("mps")) == torch.float32


def test_what_half_precision_changes_is_measured_on_the_stages_themselves():
    plain = bfloat16_error(tiny_backbone(), CPU)
    assert 1e-4 < plain < HALF_PRECISION_ERROR
    exact = as_backbone([nn.Identity(), nn.AvgPool2d(2)], preprocessing=SMALL)
    small = bfloat16_error(exact, CPU)

    class Cancels(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return (pixels + 300) - 300  # bfloat16 has 8 bits

    assert small < plain and bfloat16_error(as_backbone([Cancels()], preprocessing=SMALL), CPU) > 10 * plain


@pytest.mark.slow
def test_what_is_known_to_move_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefix, "_has_bfloat16", lambda device: True)
    known = [build_backbone(name) for name, _ in prefix.KNOWN_TO_MOVE]
    assert [backbone.weights for backbone in known] == [weights for _, weights in prefix.KNOWN_TO_MOVE]
    assert all(bfloat16_error(backbone, CPU) > 2 * HALF_PRECISION_ERROR for backbone in known)
    monkeypatch.setattr(prefix, "bfloat16_error", None)  # nobody looks again
    assert all(prefix_dtype(backbone, "auto", CPU) == torch.float32 for backbone in known)
