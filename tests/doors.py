"""What a verb takes, and what it is called with: for the tests of commands and flags."""

from __future__ import annotations

import inspect
from typing import Any

from toolkit import flags
from toolkit.cli import VERBS


def signature(verb: str) -> dict[str, Any]:
    """Return the keywords of a verb and their defaults."""
    return {name: p.default for name, p in inspect.signature(VERBS[verb].function()).parameters.items()}


def parsed(verb: str, *words: str) -> dict[str, Any]:
    """Return the keywords that words on the command line become."""
    return flags.parse(verb, VERBS[verb], VERBS[verb].function(), list(words))
