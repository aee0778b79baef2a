"""Each mistake that is planted into good manifests is found by the rule that is meant, and by no other."""

from __future__ import annotations

import json
import re
from functools import cache

import pytest

from andon.deploy.check import check
from andon.deploy.findings import Finding
from tests.deploy import mistakes_of_analyses, mistakes_of_calls, mistakes_of_names, mistakes_of_safety
from tests.deploy.mistakes import Mistake
from tests.manifests import ROOT, Planting, rendered, requirements

MISTAKES = [
    *mistakes_of_names.MISTAKES,
    *mistakes_of_calls.MISTAKES,
    *mistakes_of_safety.MISTAKES,
    *mistakes_of_analyses.MISTAKES,
]


@cache
def _before(name: str) -> frozenset[Finding]:
    return frozenset(check(rendered(name), requirements()))


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_planted_mistake_is_found(mistake: Mistake) -> None:
    planting = Planting(rendered(mistake.into))
    before = json.dumps(planting.manifests)
    mistake.plant(planting)
    assert json.dumps(planting.manifests) != before
    found = set(check(planting.manifests, requirements())) - _before(mistake.into)
    fitting = [
        finding
        for finding in found
        if finding.rule == mistake.rule
        and (finding.where == mistake.where or finding.where.startswith(f"{mistake.where}-"))
        and mistake.says in finding.message
    ]
    assert fitting, found
    assert {finding.rule for finding in found} <= {mistake.rule} | mistake.also


def test_every_rule_has_a_mistake_of_its_own() -> None:
    # The rules as the code spells them.
    folder = ROOT.parents[1] / "andon" / "deploy" / "rules"
    code = "\n".join(path.read_text() for path in folder.glob("*.py"))
    spelled = set(re.findall(r'rule="([a-z-]+)"', code))
    spelled |= set(re.findall(r'(?:_finding|_missing)\(\s*"([a-z-]+)"', code))
    assert len(spelled) > 25
    assert spelled <= {mistake.rule for mistake in MISTAKES}


def test_the_names_of_mistakes_are_their_own() -> None:
    names = [mistake.name for mistake in MISTAKES]
    assert len(names) == len(set(names))
