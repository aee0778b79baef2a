"""Mistakes in shapes, namespaces, references, selectors and ports."""

from __future__ import annotations

from tests.deploy.mistakes import (
    ARGO,
    PRODUCTION,
    RUN,
    Mistake,
)

MISTAKES = [
    # Shapes
    Mistake(
        name="a field that Kubernetes does not know",
        plant=lambda p: p.find("Deployment/andon-policy")["spec"].update(replica=2),
        rule="schema",
        where="Deployment/andon-policy",
        says="'replica' was unexpected",
        also=frozenset({"service-selector", "disruption-budget"}),
    ),
    Mistake(
        name="a number as text",
        plant=lambda p: p.find("Service/andon-reward")["spec"]["ports"][0].update(port="50053"),
        rule="schema",
        where="Service/andon-reward",
        says="spec.ports.0.port",
        also=frozenset({"target"}),
    ),
    Mistake(
        name="a version of the API that is gone",
        plant=lambda p: p.find("PodDisruptionBudget/andon-policy").update(apiVersion="policy/v1beta1"),
        rule="schema",
        where="PodDisruptionBudget/andon-policy",
        says="no schema of policy/v1beta1 PodDisruptionBudget is known",
    ),
    Mistake(
        name="a field that a custom resource does not have",
        plant=lambda p: p.find("ScaledObject/andon-policy")["spec"].update(minReplicas=2),
        rule="schema",
        where="ScaledObject/andon-policy",
        says="'minReplicas' was unexpected",
        into=PRODUCTION,
    ),
    Mistake(
        name="a usage that no certificate has",
        plant=lambda p: p.find("Certificate/andon-policy")["spec"]["usages"].append("servre auth"),
        rule="schema",
        where="Certificate/andon-policy",
        says="servre auth",
        into=PRODUCTION,
        also=frozenset({"secret", "setting-path"}),
    ),
    # Namespaces
    Mistake(
        name="an object without a namespace",
        plant=lambda p: p.find("Service/andon-reward")["metadata"].pop("namespace"),
        rule="namespace",
        where="Service/andon-reward",
        says="it names no namespace",
    ),
    Mistake(
        name="an object in another namespace",
        plant=lambda p: p.find("Service/andon-reward")["metadata"].update(namespace="default"),
        rule="namespace",
        where="Service/andon-reward",
        says="namespace default is not the one of the others",
    ),
    # References
    Mistake(
        name="a ConfigMap that is not there",
        plant=lambda p: p.remove("ConfigMap/andon-reference"),
        rule="config-map",
        where="Deployment/andon-reference",
        says="ConfigMap andon-reference",
        also=frozenset({"setting-port"}),
    ),
    Mistake(
        name="a key that the ConfigMap does not have",
        plant=lambda p: p.pod("Job/andon-run-ppo")["volumes"][1]["configMap"].update(
            items=[{"key": "pppo.yaml", "path": "ppo.yaml"}]
        ),
        rule="config-map-key",
        where="Job/andon-run-ppo",
        says="key pppo.yaml of ConfigMap",
        into=RUN,
    ),
    Mistake(
        name="a Secret that nobody makes",
        plant=lambda p: p.container("Deployment/andon-labeling")["env"][0]["valueFrom"][
            "secretKeyRef"
        ].update(name="andon-labelling-database"),
        rule="secret",
        where="Deployment/andon-labeling",
        says="Secret andon-labelling-database",
    ),
    Mistake(
        name="a key that the Secret does not have",
        plant=lambda p: p.container("Deployment/andon-labeling")["env"][0]["valueFrom"][
            "secretKeyRef"
        ].update(key="uri"),
        rule="secret-key",
        where="Deployment/andon-labeling",
        says="key uri of Secret andon-labeling-database",
    ),
    Mistake(
        name="a certificate that is not asked for",
        plant=lambda p: p.remove("Certificate/andon-reward"),
        rule="secret",
        where="Deployment/andon-reward",
        says="Secret andon-reward-tls",
        into=PRODUCTION,
    ),
    Mistake(
        name="an issuer that is not there",
        plant=lambda p: p.find("Certificate/andon-reward")["spec"]["issuerRef"].update(name="andon-root"),
        rule="issuer",
        where="Certificate/andon-reward",
        says="Issuer andon-root",
        into=PRODUCTION,
    ),
    Mistake(
        name="a service account that is not there",
        plant=lambda p: p.remove("ServiceAccount/andon-reward"),
        rule="service-account",
        where="Deployment/andon-reward",
        says="ServiceAccount andon-reward",
    ),
    Mistake(
        name="rights for an account that is not there",
        plant=lambda p: p.find("RoleBinding/andon-canary")["subjects"].append(
            {"kind": "ServiceAccount", "name": "canary", "namespace": "andon"}
        ),
        rule="service-account",
        where="RoleBinding/andon-canary",
        says="ServiceAccount canary",
    ),
    Mistake(
        name="a claim that is not there",
        plant=lambda p: p.remove("PersistentVolumeClaim/andon-runs"),
        rule="claim",
        where="Deployment/andon-trainer",
        says="PersistentVolumeClaim andon-runs",
    ),
    Mistake(
        name="a priority that is not there",
        plant=lambda p: p.pod("Deployment/andon-reward").update(priorityClassName="andon-high"),
        rule="priority-class",
        where="Deployment/andon-reward",
        says="PriorityClass andon-high",
    ),
    Mistake(
        name="a mount of a volume that is not there",
        plant=lambda p: p.container("Deployment/andon-reward")["volumeMounts"][0].update(name="scratch"),
        rule="volume",
        where="Deployment/andon-reward",
        says="volume scratch does not exist",
    ),
    Mistake(
        name="pods without names",
        plant=lambda p: p.find("Service/andon-sampler")["spec"].pop("clusterIP"),
        rule="stateful-set-service",
        where="StatefulSet/andon-sampler",
        says="is not headless",
    ),
    Mistake(
        name="an autoscaler of nothing",
        plant=lambda p: p.find("ScaledObject/andon-policy")["spec"]["scaleTargetRef"].update(name="policy"),
        rule="scale-target",
        where="ScaledObject/andon-policy",
        says="Deployment policy does not exist",
        into=PRODUCTION,
    ),
    Mistake(
        name="a number of replicas beside an autoscaler",
        plant=lambda p: p.find("Deployment/andon-policy")["spec"].update(replicas=3),
        rule="scale-target",
        where="ScaledObject/andon-policy",
        says="also names a number of replicas",
        into=PRODUCTION,
    ),
    Mistake(
        name="a role that is not there",
        plant=lambda p: p.find("RoleBinding/andon-canary")["roleRef"].update(name="andon-rollouts"),
        rule="role",
        where="RoleBinding/andon-canary",
        says="Role andon-rollouts does not exist",
    ),
    # Selectors and ports
    Mistake(
        name="a Service that finds no pods",
        plant=lambda p: p.find("Service/andon-policy")["spec"].update(
            selector={"app.kubernetes.io/name": "andon-polciy"}
        ),
        rule="service-selector",
        where="Service/andon-policy",
        says="finds no pods",
    ),
    Mistake(
        name="a Service's port that leads nowhere",
        plant=lambda p: p.find("Service/andon-policy")["spec"]["ports"][0].update(targetPort="rpc"),
        rule="service-port",
        where="Service/andon-policy",
        says="leads to rpc",
    ),
    Mistake(
        name="another number at a headless Service",
        plant=lambda p: p.find("Service/andon-trainer")["spec"]["ports"][0].update(port=443),
        rule="service-port",
        where="Service/andon-trainer",
        says="headless, but port 443 differs",
    ),
    Mistake(
        name="a Deployment that takes another one's pods for its own",
        plant=lambda p: p.find("Deployment/andon-policy")["spec"].update(
            selector={"matchLabels": {"app.kubernetes.io/component": "policy"}}
        ),
        rule="workload-selector",
        where="Deployment/andon-policy",
        says="also finds the pods of Deployment/andon-policy-canary",
    ),
    Mistake(
        name="a budget of nothing",
        plant=lambda p: p.find("PodDisruptionBudget/andon-policy")["spec"].update(
            selector={"matchLabels": {"app": "policy"}}
        ),
        rule="disruption-budget",
        where="PodDisruptionBudget/andon-policy",
        says="finds no pods",
    ),
    Mistake(
        name="a budget that lets no node be drained",
        plant=lambda p: p.find("PodDisruptionBudget/andon-policy")["spec"].update(maxUnavailable=0),
        rule="disruption-budget",
        where="PodDisruptionBudget/andon-policy",
        says="nodes cannot be drained",
    ),
    Mistake(
        name="a spread that counts other pods",
        plant=lambda p: p.pod("Deployment/andon-policy")["topologySpreadConstraints"][0].update(
            labelSelector={"matchLabels": {"app": "policy"}}
        ),
        rule="topology-spread",
        where="Deployment/andon-policy",
        says="does not count its own pods",
    ),
    Mistake(
        name="a scrape of a port that is not there",
        plant=lambda p: p.find("PodMonitor/andon")["spec"]["podMetricsEndpoints"][0].update(port="http"),
        rule="pod-monitor",
        where="PodMonitor/andon",
        says="has the port http",
        into=PRODUCTION,
    ),
    # Rollouts by Argo
    Mistake(
        name="an analysis that is not there",
        plant=lambda p: p.remove("AnalysisTemplate/andon-policy-halt"),
        rule="rollout",
        where="Rollout/andon-policy",
        says="AnalysisTemplate andon-policy-halt does not exist",
        into=ARGO,
    ),
    Mistake(
        name="a route that is not there",
        plant=lambda p: p.remove("GRPCRoute/andon-policy"),
        rule="rollout",
        where="Rollout/andon-policy",
        says="GRPCRoute andon-policy does not exist",
        into=ARGO,
    ),
    Mistake(
        name="an analysis of a series that nothing makes",
        plant=lambda p: p.find("AnalysisTemplate/andon-policy-halt")["spec"]["metrics"][0]["provider"][
            "prometheus"
        ].update(query="max(andon_cord)"),
        rule="series",
        where="AnalysisTemplate/andon-policy-halt",
        says="cord asks for andon_cord,",
        into=ARGO,
    ),
]
