"""Mistakes in settings, metrics, images and security."""

from __future__ import annotations

from tests.deploy.mistakes import (
    GPU,
    PRODUCTION,
    Mistake,
    add_variable,
    set_datum,
)
from tests.manifests import Planting


def _rule_expression(planting: Planting) -> None:
    rule = planting.find("PrometheusRule/andon-serving")["spec"]["groups"][0]["rules"][0]
    rule["expr"] = rule["expr"].replace("andon_rpc_handled_total", "andon_rpc_handeld_total")


def _dashboard_expression(planting: Planting) -> None:
    data = planting.find("ConfigMap/andon-dashboard-services")["data"]
    data["services.json"] = data["services.json"].replace("andon_rpc_handled_total", "andon_rpc_calls_total")


def _plain_database(planting: Planting) -> None:
    (variable,) = (
        entry
        for entry in planting.container("Deployment/andon-labeling")["env"]
        if entry["name"] == "ANDON_LABELING_DATABASE"
    )
    del variable["valueFrom"]
    variable["value"] = "postgresql://andon:hunter2@db.example.com:5432/andon"


def _add(planting: Planting, manifest: dict[str, object]) -> None:
    planting.manifests.append(manifest)


MISTAKES = [
    # Settings
    Mistake(
        name="a setting that the service does not have",
        plant=lambda p: add_variable(p, "Deployment/andon-policy", "ANDON_POLICY_CACHE_MB", "4096"),
        rule="setting",
        where="Deployment/andon-policy",
        says="did you mean cache_mib?",
    ),
    Mistake(
        name="a setting of another service",
        plant=lambda p: add_variable(p, "Deployment/andon-reward", "ANDON_POLICY_THREADS", "4"),
        rule="setting",
        where="Deployment/andon-reward",
        says="is a setting of policy",
    ),
    Mistake(
        name="a value that the setting does not take",
        plant=lambda p: set_datum(p, "andon-reward", "ANDON_REWARD_DTYPE", "bf16"),
        rule="setting-value",
        where="Deployment/andon-reward",
        says="'bf16' is no value",
        into=GPU,
    ),
    Mistake(
        name="a number that is too small",
        plant=lambda p: set_datum(p, "andon-reward", "ANDON_REWARD_THREADS", "0"),
        rule="setting-value",
        where="Deployment/andon-reward",
        says="'0' is no value",
    ),
    Mistake(
        name="a port other than the container's",
        plant=lambda p: set_datum(p, "andon-reward", "ANDON_REWARD_PORT", "50063"),
        rule="setting-port",
        where="Deployment/andon-reward",
        says="port is 50063",
    ),
    Mistake(
        name="no health port",
        plant=lambda p: set_datum(p, "andon-reward", "ANDON_REWARD_HEALTH_PORT", None),
        rule="setting-port",
        where="Deployment/andon-reward",
        says="health_port is off",
    ),
    Mistake(
        name="an address that only the pod reaches",
        plant=lambda p: set_datum(p, "andon-reward", "ANDON_REWARD_HOST", None),
        rule="setting-port",
        where="Deployment/andon-reward",
        says="listens on 127.0.0.1",
    ),
    Mistake(
        name="a file that the Secret does not hold",
        plant=lambda p: set_datum(
            p, "andon-reward", "ANDON_REWARD_TLS_CERTIFICATE", "/etc/andon/tls/cert.pem"
        ),
        rule="setting-path",
        where="Deployment/andon-reward",
        says="has no file cert.pem",
        into=PRODUCTION,
    ),
    Mistake(
        name="a folder in the image",
        plant=lambda p: set_datum(p, "andon-trainer", "ANDON_TRAINER_RUNS", "/srv/runs"),
        rule="setting-path",
        where="Deployment/andon-trainer",
        says="/srv/runs lies on no volume",
    ),
    Mistake(
        name="a store that the trainer cannot write",
        plant=lambda p: p.container("Deployment/andon-trainer")["volumeMounts"][2].update(readOnly=True),
        rule="setting-path",
        where="Deployment/andon-trainer",
        says="mounted read-only",
    ),
    # Metrics
    Mistake(
        name="a rule over a series that nothing makes",
        plant=_rule_expression,
        rule="series",
        where="PrometheusRule/andon-serving",
        says="andon_rpc_handeld_total",
        into=PRODUCTION,
    ),
    Mistake(
        name="a panel over a series that nothing makes",
        plant=_dashboard_expression,
        rule="series",
        where="ConfigMap/andon-dashboard-services",
        says="andon_rpc_calls_total",
        into=PRODUCTION,
    ),
    Mistake(
        name="an autoscaler over a series that nothing makes",
        plant=lambda p: p.find("ScaledObject/andon-policy")["spec"]["triggers"][0]["metadata"].update(
            query="sum(andon_policy_queued_calls)"
        ),
        rule="series",
        where="ScaledObject/andon-policy",
        says="andon_policy_queued_calls",
        into=PRODUCTION,
    ),
    # Images
    Mistake(
        name="an image that nobody knows",
        plant=lambda p: p.container("Deployment/andon-reward").update(image="andon/gpu:0.1.0"),
        rule="image",
        where="Deployment/andon-reward",
        says="andon/gpu is not among",
    ),
    Mistake(
        name="an image without a version",
        plant=lambda p: p.container("Deployment/andon-reward").update(image="andon/model:latest"),
        rule="image",
        where="Deployment/andon-reward",
        says="names no version",
    ),
    # Security
    Mistake(
        name="root",
        plant=lambda p: p.pod("Deployment/andon-reward")["securityContext"].update(
            runAsNonRoot=False, runAsUser=0
        ),
        rule="restricted",
        where="Deployment/andon-reward",
        says="may run as root",
    ),
    Mistake(
        name="privileges to gain",
        plant=lambda p: p.container("Deployment/andon-reward")["securityContext"].pop(
            "allowPrivilegeEscalation"
        ),
        rule="restricted",
        where="Deployment/andon-reward",
        says="may gain privileges",
    ),
    Mistake(
        name="a capability",
        plant=lambda p: p.container("Deployment/andon-reward")["securityContext"]["capabilities"].update(
            add=["SYS_ADMIN"]
        ),
        rule="restricted",
        where="Deployment/andon-reward",
        says="does not drop all capabilities",
    ),
    Mistake(
        name="no seccomp profile",
        plant=lambda p: p.pod("Deployment/andon-reward")["securityContext"].pop("seccompProfile"),
        rule="restricted",
        where="Deployment/andon-reward",
        says="no seccomp profile",
    ),
    Mistake(
        name="a folder of the node",
        plant=lambda p: p.pod("Deployment/andon-reward")["volumes"][0].update(
            {"hostPath": {"path": "/"}, "emptyDir": None}
        ),
        rule="restricted",
        where="Deployment/andon-reward",
        says="is a folder of the node",
    ),
    Mistake(
        name="an image that can be written",
        plant=lambda p: p.container("Deployment/andon-reward")["securityContext"].pop(
            "readOnlyRootFilesystem"
        ),
        rule="read-only-root",
        where="Deployment/andon-reward",
        says="may write into its image",
    ),
    Mistake(
        name="a namespace without Pod Security",
        plant=lambda p: p.find("Namespace/andon")["metadata"].pop("labels"),
        rule="restricted",
        where="Namespace/andon",
        says="does not enforce restricted",
    ),
    Mistake(
        name="no limit of memory",
        plant=lambda p: p.container("Deployment/andon-reward")["resources"].pop("limits"),
        rule="resources",
        where="Deployment/andon-reward",
        says="no limit of memory",
    ),
    Mistake(
        name="more than the limit",
        plant=lambda p: p.container("Deployment/andon-reward")["resources"]["requests"].update(memory="9Gi"),
        rule="resources",
        where="Deployment/andon-reward",
        says="requests more memory than its limit",
    ),
    Mistake(
        name="the default account",
        plant=lambda p: p.pod("Deployment/andon-reward").pop("serviceAccountName"),
        rule="default-account",
        where="Deployment/andon-reward",
        says="default service account",
    ),
    Mistake(
        name="a token without a use",
        plant=lambda p: p.pod("Deployment/andon-reward").update(automountServiceAccountToken=True),
        rule="account-token",
        where="Deployment/andon-reward",
        says="has no use for",
    ),
    Mistake(
        name="variables of Services among the settings",
        plant=lambda p: p.pod("Deployment/andon-reward").pop("enableServiceLinks"),
        rule="service-links",
        where="Deployment/andon-reward",
        says="services read as settings",
    ),
    Mistake(
        name="a Secret among the manifests",
        plant=lambda p: _add(
            p,
            {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": "andon-trainer-token", "namespace": "andon"},
                "stringData": {"token": "hunter2"},
            },
        ),
        rule="plain-secret",
        where="Secret/andon-trainer-token",
        says="make it in the cluster",
    ),
    Mistake(
        name="a password in a variable",
        plant=_plain_database,
        rule="plain-secret",
        where="Deployment/andon-labeling",
        says="ANDON_LABELING_DATABASE holds a secret",
    ),
    Mistake(
        name="a token in a ConfigMap",
        plant=lambda p: set_datum(p, "andon-trainer", "ANDON_TRAINER_LABELING_TOKEN", "hunter2"),
        rule="plain-secret",
        where="ConfigMap/andon-trainer",
        says="ANDON_TRAINER_LABELING_TOKEN holds a secret",
    ),
    Mistake(
        name="any right",
        plant=lambda p: p.find("Role/andon-canary")["rules"][0].update(verbs=["*"]),
        rule="rights",
        where="Role/andon-canary",
        says="verbs holds a wildcard",
    ),
    Mistake(
        name="rights over any Deployment",
        plant=lambda p: p.find("Role/andon-canary")["rules"][0].pop("resourceNames"),
        rule="rights",
        where="Role/andon-canary",
        says="no names",
    ),
    Mistake(
        name="rights to read Secrets",
        plant=lambda p: p.find("Role/andon-canary")["rules"][0]["resources"].append("secrets"),
        rule="rights",
        where="Role/andon-canary",
        says="Secrets",
    ),
    Mistake(
        name="a door past the Gateway",
        plant=lambda p: p.find("Service/andon-policy")["spec"].update(type="LoadBalancer", clusterIP=""),
        rule="open-service",
        where="Service/andon-policy",
        says="opens it to outside",
    ),
]
