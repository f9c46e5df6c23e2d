"""The README speaks of commands, flags and files that exist."""

import inspect
import re
from pathlib import Path

import toolkit
from toolkit.cli import VERBS

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
MEASURED = ROOT / "scripts/bench/results"


def test_every_command_in_it_has_verbs_and_flags_that_exist() -> None:
    commands = re.findall(
        r"\btoolkit ([a-z]+)((?: [^`#\n]*)?)", "\n".join(re.findall(r"    toolkit .*|`toolkit [^`]*`", TEXT))
    )
    assert len(commands) >= 8
    for verb, rest in commands:
        assert verb in VERBS, verb
        flags = set(re.findall(r"--(\w+)", rest)) - {"config", "json", "debug", "help"}
        assert flags <= set(inspect.signature(VERBS[verb].function()).parameters), (verb, flags)


def test_every_script_and_config_it_names_is_there() -> None:
    named = set(re.findall(r"\b((?:scripts|configs)/\w+)", TEXT))
    assert {"scripts/demo", "scripts/test"} <= named
    assert all((ROOT / name).exists() for name in named)


def test_every_python_name_it_imports_is_public() -> None:
    names = set(re.findall(r"toolkit\.(\w+)\(", TEXT))
    for line in re.findall(r"from toolkit import (.*)", TEXT):
        names |= {name.strip() for name in line.split(",")}
    assert {"finetune", "predict", "ImageClassifier", "TransferModule"} <= names
    assert all(hasattr(toolkit, name) for name in names)


def test_the_thresholds_it_states_are_the_policy_s() -> None:
    from toolkit.planning import decision, policy, probes, similarity

    text = " ".join(TEXT.split())
    assert f"a budget of {policy.BUDGET_MINUTES:g} minutes" in text
    assert f"Below a similarity of {policy.ALL_STAGES_BELOW:g} the head may see every stage" in text
    assert decision.LEAST_GAIN == 0.005 and "the least work within half a point of the best" in text
    probed = (
        f"of more than {probes.PROBED:,} images, and more than {probes.PROBED_A_CLASS} a class, a stratified sample"
    )
    assert f"{probed} ({probes.PROBED_AT_MOST:,} at most)" in text
    assert f"the activations of {similarity.SAMPLE} of your images" in text and similarity.SPREAD == 10


def test_what_it_links_to_is_there_and_has_the_heading() -> None:
    pages = [ROOT / "README.md", *MEASURED.glob("*.md")]
    links = [(page, target) for page in pages for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8"))]
    assert len(links) > 20
    for page, target in links:
        name, _, anchor = target.partition("#")
        there = page.parent / name if name else page
        assert there.exists(), (page, target)
        assert not anchor or anchor in _anchors(there), (page, target)


def _anchors(page: Path) -> set[str]:
    """Return the anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
