"""Mistakes in what Argo runs: the judge's Job, its arguments, and the steps of a Rollout."""

from __future__ import annotations

from tests.deploy.mistakes import ARGO, ARGO_MTLS, GATES, Mistake, add_variable, argo_step, set_datum
from tests.manifests import Planting


def _weights(planting: Planting, *weights: int) -> None:
    steps = planting.find("Rollout/andon-policy")["spec"]["strategy"]["canary"]["steps"]
    for step, weight in zip([step for step in steps if "setWeight" in step], weights, strict=True):
        step["setWeight"] = weight


def _canary_steps(planting: Planting) -> list[dict[str, object]]:
    steps: list[dict[str, object]] = planting.find("Rollout/andon-policy")["spec"]["strategy"]["canary"][
        "steps"
    ]
    return steps


MISTAKES = [
    # The embedded Job: its shape
    Mistake(
        name="a field that no Job has",
        plant=lambda p: p.job(GATES)["spec"].update(backofLimit=0),
        rule="schema",
        where=GATES,
        says="'backofLimit' was unexpected",
        into=ARGO,
        also=frozenset({"network-policy-peer", "network-policy-selector", "rollout"}),
    ),
    Mistake(
        name="a field that a Job has only in later versions",
        plant=lambda p: p.job(GATES)["spec"].update(managedBy="example.com/judge"),
        rule="schema",
        where=GATES,
        says="the Job of judge: spec: Additional properties are not allowed ('managedBy' was unexpected)",
        into=ARGO,
        also=frozenset({"network-policy-peer", "network-policy-selector", "rollout"}),
    ),
    # What its pods refer to
    Mistake(
        name="a judge without its ConfigMap",
        plant=lambda p: p.remove("ConfigMap/andon-judge"),
        rule="config-map",
        where=GATES,
        says="ConfigMap andon-judge",
        into=ARGO,
    ),
    Mistake(
        name="a judge with a Secret that nobody makes",
        plant=lambda p: p.pod(GATES)["volumes"][2]["secret"].update(secretName="andon-judge-token"),
        rule="secret",
        where=GATES,
        says="Secret andon-judge-token",
        into=ARGO,
    ),
    Mistake(
        name="a judge without its account",
        plant=lambda p: p.remove("ServiceAccount/andon-judge"),
        rule="service-account",
        where=GATES,
        says="ServiceAccount andon-judge",
        into=ARGO,
    ),
    Mistake(
        name="a judge with a setting that it does not have",
        plant=lambda p: add_variable(p, GATES, "ANDON_JUDGE_SHORTEST_S", "60"),
        rule="setting",
        where=GATES,
        says="judge has no setting shortest_s",
        into=ARGO,
    ),
    Mistake(
        name="a judge with a setting of the controller",
        plant=lambda p: set_datum(p, "andon-judge", "ANDON_CANARY_PLATFORM", "kubernetes"),
        rule="setting",
        where=GATES,
        says="is a setting of canary",
        into=ARGO,
    ),
    Mistake(
        name="a rate that is none, as an argument",
        plant=lambda p: p.find(GATES)["spec"]["args"][2].update(value="5 %"),
        rule="setting-value",
        where=GATES,
        says="ANDON_JUDGE_PROMOTION_ERROR_RATE: '5 %' is no value",
        into=ARGO,
    ),
    Mistake(
        name="a judge that may write into its image",
        plant=lambda p: p.container(GATES)["securityContext"].update(readOnlyRootFilesystem=False),
        rule="read-only-root",
        where=GATES,
        says="may write into its image",
        into=ARGO,
    ),
    # Whom it calls
    Mistake(
        name="a judge that no policy lets out",
        plant=lambda p: p.find("NetworkPolicy/andon-canary-calls")["spec"]["podSelector"].update(
            matchExpressions=[
                {"key": "app.kubernetes.io/component", "operator": "In", "values": ["canary", "trainer"]}
            ]
        ),
        rule="network-policy-call",
        where=GATES,
        says="the call to Deployment/andon-policy:50051 is denied (egress)",
        into=ARGO,
    ),
    Mistake(
        name="a judge that no policy lets in",
        plant=lambda p: p.remove("NetworkPolicy/andon-from-canary"),
        rule="network-policy-call",
        where=GATES,
        says="the call to Deployment/andon-reward:50053 is denied (ingress)",
        into=ARGO,
    ),
    Mistake(
        name="a judge of a Service that is not there",
        plant=lambda p: set_datum(p, "andon-judge", "ANDON_JUDGE_CANARY_TARGETS", "andon-canary:50051"),
        rule="target",
        where=GATES,
        says="no Service andon-canary with port 50051",
        into=ARGO,
    ),
    Mistake(
        name="a judge that speaks no TLS",
        plant=lambda p: [
            p.container(GATES)["env"].remove(entry)
            for entry in list(p.container(GATES)["env"])
            if entry["name"] == "ANDON_TLS_CA"
        ],
        rule="tls",
        where=GATES,
        says="speaks TLS, and ANDON_TLS_CA is not set",
        into=ARGO_MTLS,
    ),
    # Once, and not for ever
    Mistake(
        name="a judge that may judge again",
        plant=lambda p: p.job(GATES)["spec"].update(backoffLimit=2),
        rule="analysis-job",
        where=GATES,
        says="the Job of judge may be tried again",
        into=ARGO,
    ),
    Mistake(
        name="a judge that is started again in its pod",
        plant=lambda p: p.pod(GATES).update(restartPolicy="OnFailure"),
        rule="analysis-job",
        where=GATES,
        says="the Job of judge may be tried again",
        into=ARGO,
    ),
    Mistake(
        name="a judge without an end",
        plant=lambda p: p.job(GATES)["spec"].pop("activeDeadlineSeconds"),
        rule="analysis-job",
        where=GATES,
        says="may run for ever",
        into=ARGO,
    ),
    Mistake(
        name="a Job that ends before its judge",
        plant=lambda p: set_datum(p, "andon-judge", "ANDON_JUDGE_LONGEST_S", "7200"),
        rule="analysis-job",
        where=GATES,
        says="ends after 4800 s, and its judge may take 7800 s",
        into=ARGO,
    ),
    # Arguments
    Mistake(
        name="an argument that the analysis does not declare",
        plant=lambda p: p.find(GATES)["spec"]["args"].pop(3),
        rule="analysis-argument",
        where=GATES,
        says="asks for an argument rollback-error-rate",
        into=ARGO,
    ),
    Mistake(
        name="an argument that the Rollout forgets",
        plant=lambda p: argo_step(p, 2).pop("args"),
        rule="analysis-argument",
        where="Rollout/andon-policy",
        says=f"does not give {GATES} the argument step",
        into=ARGO,
        also=frozenset({"analysis-step"}),
    ),
    Mistake(
        name="an argument that no analysis takes",
        plant=lambda p: argo_step(p, 2)["args"].append({"name": "error-rate", "value": "0.01"}),
        rule="analysis-argument",
        where="Rollout/andon-policy",
        says="no analysis of the step takes the argument error-rate",
        into=ARGO,
    ),
    # Steps
    Mistake(
        name="weights that the judge does not know",
        plant=lambda p: _weights(p, 5, 20, 50),
        rule="analysis-step",
        where="Rollout/andon-policy",
        says="the judge of weight 20 is told step 2 of 5,25,50; the weights are 5,20,50",
        into=ARGO,
    ),
    Mistake(
        name="a last step that asks for no proof",
        plant=lambda p: argo_step(p, 3)["args"][0].update(value="2"),
        rule="analysis-step",
        where="Rollout/andon-policy",
        says="the judge of weight 50 is told step 2",
        into=ARGO,
    ),
    Mistake(
        name="a last step without a judge",
        plant=lambda p: _canary_steps(p).pop(),
        rule="analysis-step",
        where="Rollout/andon-policy",
        says="no judge looks at weight 50",
        into=ARGO,
    ),
]
