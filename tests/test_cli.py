"""The doors: one signature for Python, flags and YAML; light until work begins; results on stdout alone."""

from __future__ import annotations

import ast
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import toolkit
from tests.doors import parsed, signature
from tests.photos import make_photos
from toolkit import flags
from toolkit.cli import OVERVIEW, VERBS, main
from toolkit.errors import Interrupted
from toolkit.options import Options

HEAVY = ("torch", "torchvision", "lightning", "numpy", "PIL", "timm", "sklearn", "torchmetrics", "safetensors", "rich")
HEAD_MODULES, PREDICT_MODULES = 720, 250  # beside those of torch: most of a head are SciPy's, for its solver
PICTURE_MODULES = 150  # matplotlib, once the run is finished; --pictures false spares it
PYTHON_OF = {"plan": "plan_transfer", "features": "extract_features", "baseline": "train_baseline"}


def python(code: str, *arguments: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, **settings)


def test_options_are_the_keywords_of_finetune() -> None:
    keywords = {k: v for k, v in signature("finetune").items() if k not in ("data", "out", "resume", "overwrite")}
    assert keywords == {field.name: field.default for field in dataclasses.fields(Options)}


def test_plan_takes_what_finetune_takes() -> None:
    own = {"out": "runs/finetune", "resume": None, "overwrite": False, "pictures": True}
    assert {**signature("plan"), "data": None} | own == signature("finetune")


@pytest.mark.parametrize("verb", ["plan", "features"])
def test_other_verbs_share_keys_and_defaults(verb: str) -> None:
    shared = signature("finetune")
    for key, default in signature(verb).items():
        if key not in ("data", "out"):
            assert shared[key] == default, key


@pytest.mark.parametrize("verb", VERBS)
def test_every_parameter_is_a_flag_and_is_described(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    function = VERBS[verb].function()
    described = flags._described(function)
    assert set(described) == set(signature(verb))
    assert main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    words = shown.replace(",", " ").split()
    for key in signature(verb):
        name = key.upper() if key in VERBS[verb].positionals else f"--{key}"
        assert name in words, key
    assert not any(text in shown for text in ("typing", "<class", "Optional", "type:", "NoneType"))
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("demo", "backbones")])
def test_every_verb_is_a_function_of_the_package(verb: str) -> None:
    assert getattr(toolkit, PYTHON_OF.get(verb, verb)) is VERBS[verb].function()


def test_the_overview_names_every_verb_and_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--help"], ["-h"], ["help"]):
        assert main(arguments) == 0
        assert capsys.readouterr().out == OVERVIEW
    for verb in VERBS:
        assert f"\n  {verb} " in OVERVIEW
    listed = [line.split()[0].removeprefix("--") for line in OVERVIEW.splitlines() if line.startswith("  --")]
    assert len(listed) == 6 and set(listed) <= set(VERBS["finetune"].main)
    assert OVERVIEW.count("toolkit finetune PHOTOS") == 2 and "toolkit features PHOTOS" in OVERVIEW
    assert max(map(len, OVERVIEW.splitlines())) <= 100


def test_the_commands_of_the_overview_parse() -> None:
    jobs = [line.partition("  toolkit ")[2] for line in OVERVIEW.splitlines() if "  toolkit " in line]
    assert len(jobs) == 3
    for job in jobs:
        verb, *words = job.split()
        assert flags.parse(verb, VERBS[verb], VERBS[verb].function(), words)["data"] == "PHOTOS"


def test_nothing_and_nonsense_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--debug"]) == 2
    assert main(["finetnue", "x"]) == 2
    assert "error: unknown verb 'finetnue'; did you mean one of: finetune" in capsys.readouterr().err


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    import importlib.metadata

    assert main(["--version"]) == main(["-V"]) == 0
    assert capsys.readouterr().out.split() == [importlib.metadata.version("transfer-toolkit")] * 2


PARTIAL = {"strategy": "partial", "cut": 5, "batch_size": 4, "views": 2}


@pytest.mark.parametrize(
    "given",
    [
        {"seed": 3, "val": 0.4, **PARTIAL},
        {**PARTIAL, "augment": "none", "views": 1},
        {"strategy": "full", "lr": 1e-3, "epochs": 3},
        {"strategy": "head", "head": "ridge", "taps": [6, 7]},
        {"strategy": "head", "views": 4},
        {"strategy": "head", "views": 4, "augment": "crop"},
        {},
    ],
    ids=str,
)
def test_plan_is_printed_with_the_command_that_carries_it_out(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_photos(tmp_path / "my photos", {"cat": 5, "dog": 5})
    given = {"image_size": 32, **given}
    spelled = {key: ",".join(map(str, value)) if isinstance(value, list) else value for key, value in given.items()}
    assert main(["plan", str(data), *(f"--{key}={value}" for key, value in spelled.items())]) == 0
    printed = capsys.readouterr().out
    first = toolkit.plan_transfer(str(data), **given)
    assert f"\nplan: {first.strategy}" in printed
    words = shlex.split(printed.partition("to carry it out:\n")[2])
    assert words[:2] == ["toolkit", "finetune"]
    values = parsed("finetune", *words[2:])
    again = toolkit.plan_transfer(**{key: values[key] for key in signature("plan")})
    alike = {"overridden": (), "reasons": (), "predicted": None, "ways": ()}  # what was set; seconds
    assert dataclasses.replace(again, **alike) == dataclasses.replace(first, **alike)
    assert all(values[key] == value for key, value in given.items() if key in ("seed", "val", "batch_size", "views"))


def test_plan_json_is_all_that_is_on_stdout(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(photo_folder), "--json"]) == 0
    captured = capsys.readouterr()
    plan = json.loads(captured.out)
    assert (plan["strategy"], plan["facts"]["n_train"]) == ("head", 12)
    assert "15 images of 3 classes" in captured.err


def test_backbones_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "name" and "on this machine" in lines[0]
    lite = next(line for line in lines if line.startswith("efficientnet_lite0 "))
    assert "4.7 M" in lite and lite.endswith("yes")
    assert any(line.startswith("resnet18 ") for line in lines) and any(line.startswith("timm/") for line in lines)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_have_their_codes(
    number: int, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def interrupted(*arguments: object, **more: object) -> None:
        os.kill(os.getpid(), number)
        signal.pause()

    monkeypatch.setattr("toolkit.tasks.run.start_run", interrupted)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["finetune", str(tmp_path)]) == code
    assert signal.getsignal(signal.SIGTERM) is before
    assert "Traceback" not in capsys.readouterr().err


def test_memory_that_cannot_be_had_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def greedy(*arguments: object, **more: object) -> None:
        import torch

        torch.empty(10**15)

    monkeypatch.setattr("toolkit.tasks.run.start_run", greedy)
    assert main(["finetune", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: out of memory: ") and told.count("\n") == 1


def test_a_stop_after_a_checkpoint_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def stopped(*arguments: object, **more: object) -> None:
        raise Interrupted(signal.SIGTERM, "stopped after step 7; checkpoint saved")

    monkeypatch.setattr("toolkit.tasks.run.start_run", stopped)
    assert main(["finetune", str(tmp_path)]) == 143
    assert capsys.readouterr().err == "stopped after step 7; checkpoint saved\n"


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import io, sys, contextlib\n"
        "import toolkit, toolkit.cli, toolkit.options\n"
        "seen = {}\n"
        f"heavy = {(*HEAVY, 'jsonargparse', 'yaml')!r}\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        "    assert toolkit.cli.main(['--help']) == 0\n"
        "    seen['overview'] = [m for m in heavy if m in sys.modules]\n"
        "    for verb in toolkit.cli.VERBS:\n"
        "        assert toolkit.cli.main([verb, '--help']) == 0\n"
        "    assert toolkit.cli.main(['finetune', 'x', '--epochs', '0', '--strategy', 'full']) == 1\n"
        "    assert toolkit.cli.main(['finetune', 'x', '--nothing', '0']) == 2\n"
        "    seen['verbs'] = [m for m in heavy if m in sys.modules and m not in ('jsonargparse', 'yaml')]\n"
        "print(seen)\n"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr
    assert ast.literal_eval(done.stdout) == {"overview": [], "verbs": []}


def test_python_m_and_the_console_script_are_the_same() -> None:
    script = Path(sys.executable).parent / "toolkit"
    for command in ([sys.executable, "-m", "toolkit"], [str(script)]):
        done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        done = subprocess.run([*command, "nonsense"], capture_output=True, text=True, check=False)
        assert done.returncode == 2 and done.stderr.startswith("error: unknown verb")


def test_the_main_job_needs_no_network_and_a_head_imports_nothing_slow(tmp_path: Path) -> None:
    data = make_photos(tmp_path / "data", {"cat": 5, "dog": 5})
    code = (
        "import socket, sys\n"
        "def refuse(*arguments): raise OSError('no network in this test')\n"
        "socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = refuse\n"
        "from toolkit.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "slow = ('lightning', 'pytorch_lightning', 'timm', 'torchvision', 'torchmetrics', 'torch._dynamo')\n"
        "print(len(sys.modules), [m for m in slow if m in sys.modules])\n"
        "sys.exit(code)\n"
    )
    small = ["--image_size", "32", "--workers", "0", "--device", "cpu"]
    done = python(code, "finetune", "data", "--out", "run", *small, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    of_torch = int(python("import sys, torch; print(len(sys.modules))").stdout)
    n_modules, slow = done.stdout.splitlines()[-1].split(maxsplit=1)
    assert slow == "[]" and int(n_modules) <= of_torch + HEAD_MODULES + PICTURE_MODULES
    assert (tmp_path / "run/metrics.json").exists() and data.is_dir()
    done = python(code, "predict", "run", "data/cat", "--workers", "0", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[0])["path"] == "data/cat/000.jpg"
    n_modules, slow = done.stdout.splitlines()[-1].split(maxsplit=1)
    assert slow == "[]" and int(n_modules) <= of_torch + PREDICT_MODULES


def test_a_reader_that_goes_away_is_no_error(tmp_path: Path) -> None:
    code = "import sys; from toolkit.cli import main; sys.exit(main(['backbones']))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    error = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=120) == 141 and error == ""


@pytest.mark.parametrize(
    "words", [["--version"], ["--help"], ["cache", "--cache_dir", "{}"]], ids=lambda words: words[0]
)
def test_what_cannot_be_written_to_stdout_is_told_in_one_line(words: list[str], tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    words = [word.format(tmp_path) for word in words]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "toolkit", *words], stdout=full, stderr=-1, env=environment)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["error: [Errno 28] No space left on device"]


def test_closed_streams_harm_nothing(tmp_path: Path) -> None:
    script = (
        "import os, sys; os.close(int(sys.argv[1])); "
        "os.execv(sys.executable, [sys.executable, '-m', 'toolkit', *sys.argv[2:]])"
    )
    for stream in (1, 2):
        command = [sys.executable, "-c", script, str(stream), "cache", "--json", "--cache_dir", str(tmp_path / "none")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert stream == 1 or json.loads(done.stdout)["bytes"] == 0


def test_a_stdout_without_unicode_gets_escapes() -> None:
    for arguments in (["--help"], ["finetune", "--help"]):
        done = subprocess.run(
            [sys.executable, "-m", "toolkit", *arguments],
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0 and b"Traceback" not in done.stderr and b"\\u" in done.stdout
