"""The verbs as commands: a function's signature and docstring are its flags, its help, and the keys of its YAML."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, get_args, get_type_hints

from toolkit.errors import Interrupted, ToolkitError, unknown_name

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
  plan       what finetune would do with your photos, and why
  finetune   train
  evaluate   score a saved model on labelled photos
  predict    label photos with a saved model
  features   write features of photos to a file
  backbones  list the networks
"""


@dataclass(frozen=True)
class Verb:
    """How a verb is reached from the command line.

    target: "module:function". positionals: parameters without a dash; the last one takes several values if it is a
    list. main: options shown first. shown: turns the result into lines for stdout.
    """

    target: str
    positionals: tuple[str, ...] = ()
    main: tuple[str, ...] = ()
    as_json: bool = False

    def function(self) -> Callable[..., Any]:
        """Import the function; its module imports no torch."""
        module, name = self.target.split(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


VERBS = {
    "demo": Verb("toolkit.tasks.demo:demo"),
    "plan": Verb("toolkit.tasks.plan:plan_transfer", ("data",), ("strategy", "backbone", "image_size"), as_json=True),
    "finetune": Verb(
        "toolkit.tasks.finetune:finetune",
        ("data",),
        ("out", "strategy", "backbone", "image_size", "epochs", "seed", "resume"),
    ),
    "evaluate": Verb("toolkit.tasks.evaluate:evaluate", ("model", "data"), ("split", "out"), as_json=True),
    "predict": Verb("toolkit.tasks.predict:predict", ("model", "paths")),
    "features": Verb("toolkit.tasks.features:extract_features", ("data",), ("out", "backbone", "taps", "image_size")),
    "backbones": Verb("toolkit.tasks.backbones:backbones"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0, 1 (can be mended), 2 (not understood), 130/143 (signals)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help", "help"):
        print(OVERVIEW, end="")
        return 0 if words else 2
    if words[0] in ("-V", "--version"):
        import importlib.metadata

        print(importlib.metadata.version("transfer-toolkit"))
        return 0
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    before = signal.signal(signal.SIGTERM, _on_sigterm)
    try:
        return _run(words[0], words[1:])
    except _NotUnderstoodError as error:
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, MemoryError, RuntimeError) as error:
        if debug or not _can_be_mended(error):
            raise
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _run(name: str, words: list[str]) -> int:
    if name not in VERBS:
        raise _NotUnderstoodError(unknown_name("verb", name, VERBS))
    verb = VERBS[name]
    function = verb.function()
    try:
        values = _parse(name, verb, function, words)
    except SystemExit as end:  # help was asked for
        return int(end.code or 0)
    as_json = values.pop("json", False)
    _show(name, function(**values), values, as_json)
    return 0


class _NotUnderstoodError(Exception):
    """The command line itself cannot be parsed."""


def _parse(name: str, verb: Verb, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    """Return the function's keyword arguments from flags and YAML; flags win."""
    import jsonargparse

    from toolkit.help_text import HelpFormatter

    parser = jsonargparse.ArgumentParser(
        prog=f"toolkit {name}",
        usage=" ".join([f"toolkit {name}", *(key.upper() for key in verb.positionals), "[options]"]),
        description=(inspect.getdoc(function) or "").split("\n\n")[0],
        formatter_class=HelpFormatter,
        exit_on_error=False,
        default_env=False,
    )
    hints, described = get_type_hints(function, localns=_NO_TORCH), _described(function)
    first, more = parser.add_argument_group("options that matter"), parser.add_argument_group("more options")
    parameters = inspect.signature(function).parameters
    for key in verb.positionals:
        several = _is_list(hints[key])
        optional = parameters[key].default is None
        settings: dict[str, Any] = {"nargs": "+" if several else "?"} if several or optional else {}
        parser.add_argument(key, type=str, help=described.get(key), metavar=key.upper(), **settings)
    for key in sorted((k for k in parameters if k not in verb.positionals), key=lambda k: k not in verb.main):
        group = first if key in verb.main else more
        default = parameters[key].default
        if hints[key] is bool:
            group.add_argument(f"--{key}", action="store_true", help=described.get(key))
        else:
            group.add_argument(
                f"--{key}", type=hints[key], default=default, help=described.get(key), metavar=key.upper()
            )
    if verb.as_json:
        more.add_argument("--json", action="store_true", help="print JSON instead of text")
    if parameters:
        more.add_argument("--config", action="config", metavar="FILE", help="a YAML file with these keys; flags win")
    more.add_argument("--debug", action="store_true", help="show the traceback of an error")
    try:
        parsed = parser.parse_args(_spelled_as_keys(words, parameters, hints)).as_dict()
    except jsonargparse.ArgumentError as error:
        raise _NotUnderstoodError(f"{_one_line(str(error))} (toolkit {name} --help says what there is)") from None
    return {key: value for key, value in parsed.items() if key in (*parameters, "json") and key != "config"}


# Return types name classes whose modules import torch; as annotations of flags they are never looked at.
_NO_TORCH: dict[str, Any] = dict.fromkeys(("Run", "TransferPlan"), object)


def _spelled_as_keys(words: list[str], parameters: Iterable[str], hints: dict[str, Any]) -> list[str]:
    """Accept --cache-dir for --cache_dir, and 5,6,7 for a list of numbers."""
    spelled: list[str] = []
    for word in words:
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")
            word = flag + equals + value
            if equals and _is_list(hints.get(flag[2:])) and not value.startswith("["):
                word = f"{flag}=[{value}]"
        elif spelled and spelled[-1].startswith("--") and _is_list(hints.get(spelled[-1][2:])) and word[:1] != "[":
            word = f"[{word}]"
        spelled.append(word)
    return spelled


def _is_list(hint: Any) -> bool:
    """Return whether a type is a list, or a list or None."""
    return any(getattr(kind, "__origin__", None) is list for kind in (hint, *get_args(hint)))


def _described(function: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstring's Args section says of each parameter."""
    lines = (inspect.getdoc(function) or "").partition("\nArgs:\n")[2].splitlines()
    pairs = (line.strip().partition(": ") for line in lines if line.strip())
    return {key: text.replace("%", "%%") for key, _, text in pairs}


def _one_line(text: str) -> str:
    """Return a parser's message in one line; of a value that fits no type, the key and the value."""
    flat = " ".join(text.split())
    wrong = re.search(r'key "(\w+)".*?Expected a <class .(\w+).>.*?Given value: (.*)$', flat)
    return f"{wrong[1]}: {wrong[2]} expected, got {wrong[3]!r}" if wrong else flat


def _show(name: str, result: Any, values: dict[str, Any], as_json: bool) -> None:
    """Print a result on stdout: JSON lines for predict, JSON if asked for, else text."""
    if name == "predict":
        for record in result:
            print(json.dumps(record, ensure_ascii=False, allow_nan=False), flush=True)
        return
    if as_json:
        print(json.dumps(result.to_dict(), ensure_ascii=False, allow_nan=False, indent=2))
        return
    print(result)
    if name == "plan":
        from toolkit.tasks.plan import command_of

        print(f"to carry it out:\n  {command_of(result, values['data'])}")


def _on_sigterm(signal_number: int, frame: FrameType | None) -> None:
    raise Interrupted(signal_number)


def _can_be_mended(error: BaseException) -> bool:
    """Return whether an error of the system or of torch is about resources that a person can change."""
    text = str(error).lower()
    return isinstance(error, (OSError, MemoryError)) or "out of memory" in text or "no space left" in text
