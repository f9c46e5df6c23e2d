"""Errors a person can mend: one line each, with the nearest names."""

from __future__ import annotations

from toolkit.errors import ArtifactError, DataError, Interrupted, SettingError, ToolkitError, WeightsError, unknown_name


def test_an_unknown_name_comes_with_the_nearest_ones() -> None:
    error = unknown_name("backbone", "resnet5", ["vgg11", "resnet50", "resnet18"])
    assert isinstance(error, SettingError)
    assert str(error).startswith("unknown backbone 'resnet5'; did you mean one of: resnet50, ")
    assert "vgg11" in str(unknown_name("backbone", "zzz", ["vgg11"]))
    assert "\n" not in str(error)


def test_what_a_person_can_mend_has_one_parent() -> None:
    assert all(issubclass(kind, ToolkitError) for kind in (SettingError, DataError, WeightsError, ArtifactError))


def test_a_signal_is_no_exception_that_a_handler_swallows() -> None:
    assert not issubclass(Interrupted, Exception)
    assert Interrupted(15).signal_number == 15
