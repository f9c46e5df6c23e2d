"""How a verb's help looks: what an option does and its default, without the parser's types."""

from __future__ import annotations

from argparse import Action

from jsonargparse import DefaultHelpFormatter


class HelpFormatter(DefaultHelpFormatter):
    """Shows `--flag VALUE  what it does (default: …)`; a default that depends on the data is told in words."""

    def _format_action_invocation(self, action: Action) -> str:
        if not action.option_strings:
            return str(action.metavar or action.dest)
        flags = ", ".join(flag for flag in action.option_strings if not flag.endswith("+"))
        return flags if action.nargs == 0 else f"{flags} {action.metavar or action.dest.upper()}"

    def _expand_help(self, action: Action) -> str:
        text = action.help or ""
        shown = action.default is not None and action.default is not False and action.nargs != 0
        return text.replace("%%", "%") + (f" (default: {action.default})" if shown and action.option_strings else "")
