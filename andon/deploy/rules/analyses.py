"""Argo's analyses get the arguments that they ask for, their Jobs run once and end, and the judge is told the
step that it judges.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from andon.deploy.environment import environment_of, service_of, settings_of
from andon.deploy.findings import Finding
from andon.deploy.kustomize import Manifest
from andon.deploy.objects import (
    Json,
    analysis_jobs,
    arguments_in,
    declared_arguments,
    where,
    with_arguments,
)
from andon.deploy.rules import Scene
from andon.deploy.rules.settings import value_of

JUDGE = "judge"


def analysis_findings(scene: Scene) -> Iterator[Finding]:
    """Analyses that could not run, or would say something else than they seem to."""
    for template in scene.cluster.kind("AnalysisTemplate"):
        asked = arguments_in(json.dumps(template["spec"].get("metrics", [])))
        for name in sorted(asked - declared_arguments(template).keys()):
            message = f"it asks for an argument {name}, which it does not declare"
            yield Finding(rule="analysis-argument", where=where(template), message=message)
        for name, job in analysis_jobs(template):
            yield from _of_job(scene, template, name, job["spec"])
    for rollout in scene.cluster.kind("Rollout"):
        canary = rollout["spec"]["strategy"].get("canary") or {}
        steps = canary.get("steps", [])
        for analysis in (canary.get("analysis"), *(step.get("analysis") for step in steps)):
            yield from _of_arguments(scene, rollout, analysis or {})
        yield from _of_steps(scene, rollout, steps)


def _of_job(scene: Scene, template: Manifest, name: str, spec: Mapping[str, Json]) -> Iterator[Finding]:
    # A pod that is tried again is another look, for which nobody has set an error rate aside.
    if spec["template"]["spec"].get("restartPolicy") != "Never" or spec.get("backoffLimit") != 0:
        message = f"the Job of {name} may be tried again: backoffLimit 0 and restartPolicy Never forbid it"
        yield Finding(rule="analysis-job", where=where(template), message=message)
    deadline_s = spec.get("activeDeadlineSeconds")
    if deadline_s is None:
        message = f"the Job of {name} may run for ever: it has no activeDeadlineSeconds"
        yield Finding(rule="analysis-job", where=where(template), message=message)
        return
    for settings in _judges(scene, spec, declared_arguments(template)):
        try:
            longest_s = sum(float(settings[part] or 0.0) for part in ("ready_s", "longest_s"))
        except ValueError:  # said already: no value for the setting
            continue
        if deadline_s <= longest_s:
            message = f"the Job of {name} ends after {deadline_s} s, and its judge may take {longest_s:g} s"
            yield Finding(rule="analysis-job", where=where(template), message=message)


def _judges(
    scene: Scene, spec: Mapping[str, Json], arguments: Mapping[str, str | None]
) -> Iterator[dict[str, str | None]]:
    """What each judge of a Job is told, by setting; None where only the cluster knows."""
    fields = scene.contract.settings[JUDGE]["properties"]
    for container in with_arguments(spec["template"]["spec"].get("containers", []), arguments):
        if service_of(container) == JUDGE:
            settings = settings_of(JUDGE, environment_of(scene, container))
            yield {name: value_of(fields, settings, name) for name in fields}


def _of_arguments(scene: Scene, rollout: Manifest, analysis: Mapping[str, Json]) -> Iterator[Finding]:
    given = {argument["name"] for argument in analysis.get("args", [])}
    templates = list(_templates(scene, analysis))
    declared: set[str] = set()
    for template in templates:
        arguments = template["spec"].get("args", [])
        declared |= {argument["name"] for argument in arguments}
        for argument in arguments:
            if not {"value", "valueFrom"} & argument.keys() and argument["name"] not in given:
                message = f"it does not give {where(template)} the argument {argument['name']}"
                yield Finding(rule="analysis-argument", where=where(rollout), message=message)
    for name in sorted(given - declared) if templates else ():
        message = f"no analysis of the step takes the argument {name}"
        yield Finding(rule="analysis-argument", where=where(rollout), message=message)


def _of_steps(scene: Scene, rollout: Manifest, steps: Sequence[Mapping[str, Json]]) -> Iterator[Finding]:
    """The judge divides its error rate among the steps, and asks for proof at the last."""
    weights = [str(step["setWeight"]) for step in steps if "setWeight" in step]
    judged: list[str] = []
    weight = ""
    for step in steps:
        weight = str(step.get("setWeight", weight))
        right = weights.index(weight) + 1 if weight in weights else None
        for number, told in _told(scene, step.get("analysis") or {}):
            judged.append(weight)
            if told != weights or number != right:
                message = (
                    f"the judge of weight {weight} is told step {number} of {','.join(told)}; "
                    f"the weights are {','.join(weights)}"
                )
                yield Finding(rule="analysis-step", where=where(rollout), message=message)
    for left_out in [weight for weight in weights if weight not in judged] if judged else ():
        message = f"no judge looks at weight {left_out}, although others are judged"
        yield Finding(rule="analysis-step", where=where(rollout), message=message)


def _told(scene: Scene, analysis: Mapping[str, Json]) -> Iterator[tuple[int | None, list[str]]]:
    """For each judge of an analysis its step, None where it is no number, and all steps, as texts."""
    given = {argument["name"]: argument.get("value") for argument in analysis.get("args", [])}
    for template in _templates(scene, analysis):
        for _name, job in analysis_jobs(template):
            for settings in _judges(scene, job["spec"], declared_arguments(template) | given):
                step, steps = settings["step"] or "", settings["steps"] or ""
                told = [part.strip() for part in steps.strip("[]").split(",")]
                yield int(step) if step.isdigit() else None, told


def _templates(scene: Scene, analysis: Mapping[str, Json]) -> Iterator[Manifest]:
    for reference in analysis.get("templates", []):
        found = scene.cluster.find("AnalysisTemplate", reference.get("templateName", ""))
        if found is not None:
            yield found
