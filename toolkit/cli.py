"""The verbs as commands: a function's signature and docstring are its flags, its help, and the keys of its YAML."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from toolkit.allocator import keep_freed_memory
from toolkit.errors import LOST_WORKER, NO_MEMORY, Interrupted, ToolkitError, unknown_name
from toolkit.flags import NotUnderstoodError, Verb, parse

OVERVIEW = """\
usage: toolkit VERB …        (toolkit VERB --help says more)

Turns a folder of labelled photos, one sub-folder a class, into an image classifier.

The three jobs:
  fine-tune a pretrained network      toolkit finetune PHOTOS --out RUN
  extract features for a small set    toolkit features PHOTOS --out features.npz
  see what pretraining is worth       toolkit finetune PHOTOS --strategy scratch --out RUN

Options that matter (of finetune; every one has a sensible default):
  --strategy    auto, head, partial, full or scratch: how much of the network trains
  --backbone    which pretrained network
  --image_size  side of the input in pixels
  --epochs      passes over the photos
  --seed        one seed, one result
  --resume RUN  go on with an interrupted run

Verbs:
  demo       the main job on data that is already here; start with this
  check      whether data, preprocessing, network and learning are in order
  plan       what finetune would do with your photos, and why
  finetune   train
  evaluate   score a saved model on labelled photos
  predict    label photos with a saved model
  compare    which of two runs is better, by how much, and could it be chance
  features   write features of photos to a file
  baseline   train a plain net, a linear classifier or nearest neighbours
  search     find better settings by cross-validation on the training photos
  notes      try out what the lecture notes claim: numbers and a picture
  backbones  list the networks
  cache      what the cache of features holds; --limit SIZE makes it smaller
"""

VERBS = {
    "demo": Verb("toolkit.tasks.demo:demo"),
    "plan": Verb(
        "toolkit.tasks.plan:plan_transfer",
        ("data",),
        ("strategy", "backbone", "image_size"),
        as_json=True,
        others=("out", "resume", "overwrite", "pictures"),  # of finetune: its files are planned as they are
    ),
    "check": Verb(
        "toolkit.tasks.check:check",
        ("data",),
        ("model", "fix_list", "strategy", "backbone", "image_size"),
        as_json=True,
    ),
    "finetune": Verb(
        "toolkit.tasks.finetune:finetune",
        ("data",),
        ("out", "strategy", "backbone", "image_size", "epochs", "seed", "resume"),
    ),
    "evaluate": Verb("toolkit.tasks.evaluate:evaluate", ("model", "data"), ("split", "out"), as_json=True),
    "predict": Verb("toolkit.tasks.predict:predict", ("model", "paths")),
    "compare": Verb("toolkit.tasks.compare:compare", ("run", "other"), as_json=True),
    "features": Verb("toolkit.tasks.features:extract_features", ("data",), ("out", "backbone", "taps", "image_size")),
    "baseline": Verb(
        "toolkit.tasks.baseline:train_baseline",
        ("data",),
        ("out", "model", "on", "epochs", "seed", "resume"),
    ),
    "search": Verb(
        "toolkit.tasks.search:search",
        ("data",),
        ("out", "model", "strategy", "trials", "sampler", "seed"),
        as_json=True,
    ),
    "notes": Verb("toolkit.tasks.notes:notes", ("name",), ("out", "seed"), as_json=True),
    "backbones": Verb("toolkit.tasks.backbones:backbones"),
    "cache": Verb("toolkit.tasks.cache:cache", (), ("limit", "cache_dir"), as_json=True),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 (can be mended), 2 (not understood), 130/143 (signals)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever began us: what is said is lost, and nothing else goes there
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show × or an umlaut gets escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        code = _run(words)
        sys.stdout.flush()  # here, where it can still be told that nobody gets it
        return code
    except NotUnderstoodError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ToolkitError as error:
        if debug:
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 128 + stop.signal_number
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        _drop_output()
        return 128 + signal.SIGPIPE
    except (OSError, MemoryError, RuntimeError) as error:
        if debug or not _can_be_mended(error):
            raise
        print(f"error: {_told(error)}", file=sys.stderr)
        try:
            sys.stdout.flush()
        except OSError:  # a full disk: the interpreter would try once more at its end, and say so in its own words
            _drop_output()
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _drop_output() -> None:
    """Let what is still to be written to stdout go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        import importlib.metadata

        print(importlib.metadata.version("transfer-toolkit"))
        return 0
    name, words = arguments[0], arguments[1:]
    if name not in VERBS:
        raise NotUnderstoodError(unknown_name("verb", name, VERBS))
    verb = VERBS[name]
    function = verb.function()
    try:
        values = parse(name, verb, function, words)
    except SystemExit as end:  # help was asked for
        return int(end.code or 0)
    as_json = values.pop("json", False)
    keep_freed_memory()
    result = function(**values)
    _show(name, result, values, as_json)
    return 1 if name == "check" and result.status == "fail" else 0


def _show(name: str, result: Any, values: dict[str, Any], as_json: bool) -> None:
    """Print a result on stdout: JSON lines for predict, JSON if asked for, else text."""
    if name == "predict":
        for record in result:
            print(_json_line(record), flush=True)
        return
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False, indent=2))
        return
    if name == "plan":
        from toolkit.planning.page import page
        from toolkit.tasks.plan import command_of

        print(f"{page(result)}\n\nto carry it out:\n  {command_of(values)}")
        return
    print(result)
    if name == "features" and values["out"] is None:
        print("nothing was written; give --out FILE.npz for that", file=sys.stderr)


def _json_line(record: dict[str, Any]) -> str:
    """Return JSON in one line; a file name that stdout cannot spell is written with escapes."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    try:
        line.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        return json.dumps(record, allow_nan=False)
    return line


def _on_sigterm(signal_number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal_number)


def _told(error: BaseException) -> str:
    """Return one line on an error that can be mended."""
    text = " ".join(str(error).split())
    if "DataLoader worker" in text:
        return LOST_WORKER
    place = text.lower().find(NO_MEMORY)
    return f"out of memory: {text[place:]}" if place >= 0 else text or "out of memory"


def _can_be_mended(error: BaseException) -> bool:
    """Return whether an error of the system or of torch is about resources that a person can change."""
    text = str(error).lower()
    return (
        isinstance(error, (OSError, MemoryError))
        or "out of memory" in text
        or NO_MEMORY in text
        or "no space left" in text
        or "home directory" in text
        or "dataloader worker" in text  # torch hears of its death, and raises, wherever the program then is
    )
