"""From the words of a command line, and a YAML file, to a function's keyword arguments."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from toolkit.errors import SettingError, unknown_name

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_SWITCHED = ("true", "false", "yes", "no")
_NO_NUMBERS = {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}  # as YAML spells them
# Return types name classes whose modules import torch; as annotations of flags they are never looked at.
_RESULTS = ("BaselineRun", "CacheReport", "CheckReport", "NotesReport", "Run", "SearchReport", "TransferPlan")
_NO_TORCH: dict[str, Any] = dict.fromkeys(_RESULTS, object)


@dataclass(frozen=True)
class Verb:
    """How a verb is reached from the command line.

    target: "module:function". positionals: parameters without a dash; the last one takes several values if it is a
    list. main: options shown first. as_json: whether there is a flag --json. others: keys of a YAML file that are for
    another verb, whose file this one reads as well; they are left out.
    """

    target: str
    positionals: tuple[str, ...] = ()
    main: tuple[str, ...] = ()
    as_json: bool = False
    others: tuple[str, ...] = ()

    def function(self) -> Callable[..., Any]:
        """Import the function; its module imports no torch."""
        module, name = self.target.split(":")
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found


class NotUnderstoodError(Exception):
    """The command line itself cannot be parsed."""


def parse(name: str, verb: Verb, function: Callable[..., Any], words: list[str]) -> dict[str, Any]:
    """Return the function's keyword arguments, and `json` where it was asked for; flags win over the YAML file.

    Raises NotUnderstoodError for words that do not parse, SettingError for a YAML file that does not.
    """
    import jsonargparse

    hints, parameters = get_type_hints(function, localns=_NO_TORCH), inspect.signature(function).parameters
    words, file = _without_config(_spelled_as_keys(words, parameters, hints))
    _refuse_repeated(words, [key for key in parameters if _is_list(hints[key], of=str)])
    values = {} if file is None else _from_yaml(file, {key: hints[key] for key in parameters}, verb.others)
    parser = _parser(name, verb, function, hints, values)
    try:
        if file is not None:  # the parser takes null for anything, and any value for a flag without one
            for key, value in values.items():
                if hints[key] is bool and not isinstance(value, bool):
                    raise SettingError(f"{file}: {key}: true or false expected, got {value!r}")
            elsewhere = {key: ["?"] if _is_list(hints[key]) else "?" for key in verb.positionals if key not in values}
            parser.parse_object({**elsewhere, **values})
            for key, value in values.items():
                if value is None and type(None) not in get_args(hints[key]):
                    raise SettingError(f"{file}: {key}: a value expected, got null")
        parser.set_defaults(values)
    except (jsonargparse.ArgumentError, TypeError, ValueError) as error:
        raise SettingError(f"{file}: {_one_line(str(error))}") from None
    try:
        parsed = parser.parse_args(words).as_dict()
    except jsonargparse.ArgumentError as error:
        raise NotUnderstoodError(f"{_one_line(str(error))} (toolkit {name} --help says what there is)") from None
    return {key: value for key, value in parsed.items() if key in (*parameters, "json")}


def _parser(
    name: str, verb: Verb, function: Callable[..., Any], hints: dict[str, Any], values: dict[str, Any]
) -> ArgumentParser:
    """Return the parser of a verb; positionals that the YAML file gives may be left out."""
    import jsonargparse

    from toolkit.help_text import HelpFormatter

    parser = jsonargparse.ArgumentParser(
        prog=f"toolkit {name}",
        usage=" ".join([f"toolkit {name}", *(key.upper() for key in verb.positionals), "[options]"]),
        description=(inspect.getdoc(function) or "").split("\n\n")[0],
        formatter_class=HelpFormatter,
        exit_on_error=False,
        default_env=False,
        allow_abbrev=False,  # --conf would get past what is asked of --config here, and be ignored
    )
    described, parameters = _described(function), inspect.signature(function).parameters
    first, more = parser.add_argument_group("options that matter"), parser.add_argument_group("more options")
    for key in verb.positionals:
        several, optional = _is_list(hints[key]), key in values or parameters[key].default is None
        number = {(True, True): "*", (True, False): "+", (False, True): "?"}.get((several, optional))
        settings: dict[str, Any] = {} if number is None else {"nargs": number}
        parser.add_argument(key, type=str, help=described.get(key), metavar=key.upper(), **settings)
    for key in sorted((k for k in parameters if k not in verb.positionals), key=lambda k: k not in verb.main):
        group = first if key in verb.main else more
        default = parameters[key].default
        if hints[key] is bool and not default:
            group.add_argument(f"--{key}", type=bool, nargs="?", default=False, help=described.get(key))
        elif _is_list(hints[key], of=str):
            group.add_argument(
                f"--{key}", type=str, nargs="+", default=default, help=described.get(key), metavar=key.upper()
            )
        else:
            group.add_argument(
                f"--{key}", type=hints[key], default=default, help=described.get(key), metavar=key.upper()
            )
    if verb.as_json:
        more.add_argument("--json", action="store_true", help="print JSON instead of text")
    if parameters:
        more.add_argument("--config", metavar="FILE", help="a YAML file with these keys; flags win")
    more.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def _without_config(words: list[str]) -> tuple[list[str], str | None]:
    """Take `--config FILE` or `--config=FILE` out of the words."""
    rest: list[str] = []
    file = None
    pending = iter(words)
    for word in pending:
        if word.partition("=")[0] != "--config":
            rest.append(word)
            continue
        if file is not None:
            raise NotUnderstoodError("--config is given twice; one YAML file expected")
        file = word.partition("=")[2] or next(pending, "")
        if not file:
            raise NotUnderstoodError("--config: a YAML file expected after it")
    return rest, file


def _from_yaml(file: str, hints: dict[str, Any], others: Iterable[str]) -> dict[str, Any]:
    """Return the keys and values of a YAML file, without others; SettingError unless it is a table of known keys."""
    import yaml

    try:
        content = yaml.safe_load(Path(file).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(f"{file}: cannot be read ({error.strerror}); expected a YAML file") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{file}: not a YAML file ({error.reason} at byte {error.start})") from error
    except yaml.YAMLError as error:
        raise SettingError(f"{file}: not valid YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingError(f"{file}: a table of keys and values expected, found a {type(content).__name__}")
    content = {"on" if key is True else key: value for key, value in content.items()}  # YAML 1.1 takes `on` for true
    values = {str(key).replace("-", "_"): value for key, value in content.items()}
    values = {key: value for key, value in values.items() if key not in others}
    for key, value in values.items():
        if key not in hints:
            raise SettingError(f"{file}: {unknown_name('key', key, hints)}")
        if _is_list(hints[key]) and not isinstance(value, (list, type(None))):
            raise SettingError(f"{file}: {key}: a list such as [a, b] expected, got {value!r}")
        if isinstance(value, str) and float in (hints[key], *get_args(hints[key])) and value.lower() in _NO_NUMBERS:
            values[key] = float(value)
    return values


def _spelled_as_keys(words: list[str], parameters: Iterable[str], hints: dict[str, Any]) -> list[str]:
    """Accept --cache-dir for --cache_dir, 5,6,7 for a list of numbers, and a switch without a value."""
    spelled: list[str] = []
    for position, word in enumerate(words):
        if word == "--":  # what follows are file names, whatever they look like
            return [*spelled, *words[position:]]
        flag, equals, value = word.partition("=")
        if flag.startswith("--"):
            flag = "--" + flag[2:].replace("-", "_")
            word = flag + equals + value
            if equals:
                word = f"{flag}={_spelled_value(value, hints.get(flag[2:]))}"
            elif hints.get(flag[2:]) is bool and "".join(words[position + 1 : position + 2]).lower() not in _SWITCHED:
                word = f"{flag}=true"  # what comes next is no value of it
        elif spelled and spelled[-1].startswith("--"):
            word = _spelled_value(word, hints.get(spelled[-1][2:]))
        spelled.append(word)
    return spelled


def _spelled_value(value: str, hint: Any) -> str:
    """Return a flag's value as the parser reads it; what is no number gets through, for the options to refuse."""
    if _is_list(hint, of=int) and not value.startswith("["):
        return f"[{value}]"
    return _NO_NUMBERS.get(value.lower(), value) if float in (hint, *get_args(hint)) else value


def _refuse_repeated(words: list[str], keys: Iterable[str]) -> None:
    """Raise NotUnderstoodError where a list is given by two flags: the parser would forget the first."""
    flags = [word.partition("=")[0] for word in (words[: words.index("--")] if "--" in words else words)]
    for key in keys:
        if flags.count(f"--{key}") > 1:
            raise NotUnderstoodError(f"--{key} is given twice; name all after one: --{key} A B")


def _is_list(hint: Any, *, of: type | None = None) -> bool:
    """Return whether a type is a list, or a list or None; `of`: whether of such things."""
    lists = [kind for kind in (hint, *get_args(hint)) if getattr(kind, "__origin__", None) is list]
    return any(of is None or get_args(kind) == (of,) for kind in lists)


def _described(function: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstring's Args section says of each parameter."""
    lines = (inspect.getdoc(function) or "").partition("\nArgs:\n")[2].splitlines()
    pairs = (line.strip().partition(": ") for line in lines if line.strip())
    return {key: text.replace("%", "%%") for key, _, text in pairs}


def _one_line(text: str) -> str:
    """Return a parser's message in one line; of a value that fits no type, the key and the value."""
    flat = " ".join(text.split())
    wrong = re.search(r'key "(\w+)".*?Expected a <class .(\w+).>.*?(?:Given|Got) value: (?!.*Given value: )(.*)$', flat)
    return f"{wrong[1]}: {wrong[2]} expected, got {wrong[3]!r}" if wrong else flat
