"""Every name that a pod refers to is there: ConfigMaps, Secrets and their keys, claims, accounts, priorities,
volumes. So are the names in role bindings and autoscalers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from andon.deploy.findings import Finding
from andon.deploy.kustomize import Manifest
from andon.deploy.objects import Json, Pods, where
from andon.deploy.rules import Scene

# Kubernetes has these without anybody's doing.
BUILT_IN_PRIORITIES = frozenset({"system-cluster-critical", "system-node-critical"})
CERTIFICATE_KEYS = frozenset({"tls.crt", "tls.key", "ca.crt"})


def reference_findings(scene: Scene) -> Iterator[Finding]:
    """Names that lead nowhere."""
    for pods in scene.cluster.pods:
        yield from _of_pods(scene, pods)
    yield from _of_bindings(scene)
    yield from _of_scaled_objects(scene)
    yield from _of_certificates(scene)


def secret_keys(scene: Scene, name: str) -> Collection[str] | None:
    """The keys of a Secret that a Certificate makes or the requirements name; None where there is none."""
    for certificate in scene.cluster.kind("Certificate"):
        if certificate["spec"].get("secretName") == name:
            return CERTIFICATE_KEYS
    required = scene.requirements.secrets.get(name)
    return None if required is None else required.keys


def config_map_keys(scene: Scene, name: str) -> Collection[str] | None:
    """The keys of a ConfigMap among the manifests or the requirements; None where there is none."""
    found = scene.cluster.find("ConfigMap", name)
    if found is not None:
        return {*(found.get("data") or {}), *(found.get("binaryData") or {})}
    required = scene.requirements.configMaps.get(name)
    return None if required is None else required.keys


def volume_keys(scene: Scene, volume: Mapping[str, Json]) -> Collection[str] | None:
    """The files of a volume from a ConfigMap or a Secret; None for any other, or one that is not there."""
    for source, name_field, keys_of in (
        ("configMap", "name", config_map_keys),
        ("secret", "secretName", secret_keys),
    ):
        if source in volume:
            items = volume[source].get("items")
            if items is not None:
                return {item["path"] for item in items}
            return keys_of(scene, volume[source].get(name_field, ""))
    return None


def _of_pods(scene: Scene, pods: Pods) -> Iterator[Finding]:
    spec = pods.spec
    account = spec.get("serviceAccountName")
    if account is not None and scene.cluster.find("ServiceAccount", account) is None:
        yield _missing("service-account", pods.where, f"ServiceAccount {account}")
    priority = spec.get("priorityClassName")
    if (
        priority is not None
        and priority not in BUILT_IN_PRIORITIES
        and scene.cluster.find("PriorityClass", priority) is None
    ):
        yield _missing("priority-class", pods.where, f"PriorityClass {priority}")
    volumes = {volume["name"]: volume for volume in spec.get("volumes", [])}
    for volume in volumes.values():
        yield from _of_volume(scene, pods, volume)
    mounted = set()
    for container in pods.containers:
        yield from _of_environment(scene, pods, container)
        for mount in container.get("volumeMounts", []):
            mounted.add(mount["name"])
            if mount["name"] not in volumes and mount["name"] not in pods.claims:
                yield _missing("volume", pods.where, f"volume {mount['name']}")
    for name in sorted(set(volumes) - mounted):
        yield Finding(rule="volume", where=pods.where, message=f"volume {name} is mounted nowhere")
    if pods.kind == "StatefulSet":
        name = pods.workload["spec"].get("serviceName")
        service = scene.cluster.find("Service", name or "")
        if service is None:
            yield _missing("stateful-set-service", pods.where, f"Service {name}")
        elif service["spec"].get("clusterIP") != "None":
            message = f"Service {name} is not headless, so its pods have no names"
            yield Finding(rule="stateful-set-service", where=pods.where, message=message)


def _of_environment(scene: Scene, pods: Pods, container: Mapping[str, Json]) -> Iterator[Finding]:
    for source in container.get("envFrom", []):
        if (reference := source.get("configMapRef")) is not None:
            if config_map_keys(scene, reference["name"]) is None:
                yield _missing("config-map", pods.where, f"ConfigMap {reference['name']}")
        elif (reference := source.get("secretRef")) is not None and (
            secret_keys(scene, reference["name"]) is None
        ):
            yield _missing("secret", pods.where, f"Secret {reference['name']}")
    for variable in container.get("env", []):
        source = variable.get("valueFrom") or {}
        if (reference := source.get("configMapKeyRef")) is not None:
            yield from _of_key(
                "config-map",
                pods,
                f"ConfigMap {reference['name']}",
                config_map_keys(scene, reference["name"]),
                reference["key"],
            )
        elif (reference := source.get("secretKeyRef")) is not None:
            yield from _of_key(
                "secret",
                pods,
                f"Secret {reference['name']}",
                secret_keys(scene, reference["name"]),
                reference["key"],
            )


def _of_volume(scene: Scene, pods: Pods, volume: Mapping[str, Json]) -> Iterator[Finding]:
    if (source := volume.get("configMap")) is not None:
        yield from _of_items(
            "config-map", pods, f"ConfigMap {source['name']}", config_map_keys(scene, source["name"]), source
        )
    elif (source := volume.get("secret")) is not None:
        name = source["secretName"]
        yield from _of_items("secret", pods, f"Secret {name}", secret_keys(scene, name), source)
    elif (source := volume.get("persistentVolumeClaim")) is not None and (
        scene.cluster.find("PersistentVolumeClaim", source["claimName"]) is None
    ):
        yield _missing("claim", pods.where, f"PersistentVolumeClaim {source['claimName']}")


def _of_items(
    rule: str, pods: Pods, what: str, keys: Collection[str] | None, source: Mapping[str, Json]
) -> Iterator[Finding]:
    if keys is None:
        yield _missing(rule, pods.where, what)
        return
    for item in source.get("items") or []:
        yield from _of_key(rule, pods, what, keys, item["key"])


def _of_key(rule: str, pods: Pods, what: str, keys: Collection[str] | None, key: str) -> Iterator[Finding]:
    if keys is None:
        yield _missing(rule, pods.where, what)
    elif key not in keys:
        yield _missing(f"{rule}-key", pods.where, f"key {key} of {what}")


def _of_bindings(scene: Scene) -> Iterator[Finding]:
    for binding in scene.cluster.kind("RoleBinding", "ClusterRoleBinding"):
        role = binding["roleRef"]
        if scene.cluster.find(role["kind"], role["name"]) is None:
            yield _missing("role", where(binding), f"{role['kind']} {role['name']}")
        for subject in binding.get("subjects") or []:
            if (
                subject["kind"] == "ServiceAccount"
                and scene.cluster.find("ServiceAccount", subject["name"]) is None
            ):
                yield _missing("service-account", where(binding), f"ServiceAccount {subject['name']}")


def _of_scaled_objects(scene: Scene) -> Iterator[Finding]:
    for scaler in scene.cluster.kind("ScaledObject", "HorizontalPodAutoscaler"):
        target = scaler["spec"].get("scaleTargetRef") or {}
        kind, name = target.get("kind", "Deployment"), target.get("name", "")
        workload = scene.cluster.find(kind, name)
        if workload is None:
            yield _missing("scale-target", where(scaler), f"{kind} {name}")
        elif "replicas" in workload["spec"] and kind == "Deployment":
            message = f"{kind} {name} also names a number of replicas, which every apply would put back"
            yield Finding(rule="scale-target", where=where(scaler), message=message)
    for rollout in scene.cluster.kind("Rollout"):
        yield from _of_rollout(scene, rollout)


def _of_rollout(scene: Scene, rollout: Manifest) -> Iterator[Finding]:
    spec = rollout["spec"]
    target = spec.get("workloadRef") or {}
    if target and scene.cluster.find(target["kind"], target["name"]) is None:
        yield _missing("rollout", where(rollout), f"{target['kind']} {target['name']}")
    canary = spec["strategy"].get("canary") or {}
    for field in ("stableService", "canaryService"):
        if field in canary and scene.cluster.find("Service", canary[field]) is None:
            yield _missing("rollout", where(rollout), f"Service {canary[field]}")
    analyses = [
        canary.get("analysis") or {},
        *(step.get("analysis") or {} for step in canary.get("steps", [])),
    ]
    names = {template["templateName"] for analysis in analyses for template in analysis.get("templates", [])}
    for name in sorted(names):
        if scene.cluster.find("AnalysisTemplate", name) is None:
            yield _missing("rollout", where(rollout), f"AnalysisTemplate {name}")
    plugin = (canary.get("trafficRouting") or {}).get("plugins", {}).get("argoproj-labs/gatewayAPI", {})
    route = plugin.get("grpcRoute")
    if route is not None and scene.cluster.find("GRPCRoute", route) is None:
        yield _missing("rollout", where(rollout), f"GRPCRoute {route}")


def _of_certificates(scene: Scene) -> Iterator[Finding]:
    for certificate in scene.cluster.kind("Certificate"):
        issuer = certificate["spec"]["issuerRef"]
        if issuer.get("kind", "Issuer") == "Issuer" and scene.cluster.find("Issuer", issuer["name"]) is None:
            yield _missing("issuer", where(certificate), f"Issuer {issuer['name']}")
    for issuer in scene.cluster.kind("Issuer"):
        authority = issuer["spec"].get("ca")
        if authority is not None and secret_keys(scene, authority["secretName"]) is None:
            yield _missing("secret", where(issuer), f"Secret {authority['secretName']}")


def _missing(rule: str, place: str, what: str) -> Finding:
    return Finding(rule=rule, where=place, message=f"{what} does not exist")
