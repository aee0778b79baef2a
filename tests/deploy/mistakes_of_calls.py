"""Mistakes in network policies, addresses, routes and probes."""

from __future__ import annotations

from tests.deploy.mistakes import (
    GPU,
    PRODUCTION,
    S3,
    Mistake,
    backend,
    set_datum,
)

MISTAKES = [
    # Stores
    Mistake(
        name="another bucket for one",
        plant=lambda p: p.container("Deployment/andon-reward")["env"][0].update(
            value="s3://andon-model/store", valueFrom=None
        ),
        rule="store",
        where="Deployment/andon-reward",
        says="its model store is s3://andon-model/store",
        into=S3,
    ),
    Mistake(
        name="a bucket with one slash too few",
        plant=lambda p: p.container("Deployment/andon-reward")["env"][0].update(
            value="s3:/andon-models/store", valueFrom=None
        ),
        rule="setting-value",
        where="Deployment/andon-reward",
        says="s3:/andon-models/store",
        into=S3,
        also=frozenset({"store"}),
    ),
    Mistake(
        name="a bucket that nobody may reach",
        plant=lambda p: p.find("NetworkPolicy/andon-s3")["spec"]["egress"].pop(0),
        rule="store-egress",
        where="Deployment/andon-reference",
        says="TCP 443",
        into=S3,
    ),
    Mistake(
        name="a server in the cluster on another port",
        plant=lambda p: set_datum(
            p, "andon-reference", "AWS_ENDPOINT_URL", "https://minio.storage.svc.cluster.local:9000"
        ),
        rule="store-egress",
        where="Deployment/andon-reference",
        says="TCP 9000",
        into=S3,
    ),
    Mistake(
        name="a bucket without encryption",
        plant=lambda p: set_datum(p, "andon-reference", "AWS_ENDPOINT_URL", "http://s3.example.com:443"),
        rule="store-endpoint",
        where="Deployment/andon-reference",
        says="AWS_ALLOW_HTTP",
        into=S3,
    ),
    Mistake(
        name="an endpoint without a scheme",
        plant=lambda p: set_datum(p, "andon-reference", "AWS_ENDPOINT_URL", "s3.example.com"),
        rule="store-endpoint",
        where="Deployment/andon-reference",
        says="with a host",
        into=S3,
    ),
    # Network
    Mistake(
        name="nothing denied by default",
        plant=lambda p: p.remove("NetworkPolicy/andon-default-deny"),
        rule="default-deny",
        where="NetworkPolicy/*",
        says="no policy denies",
    ),
    Mistake(
        name="a default that denies only what comes in",
        plant=lambda p: p.find("NetworkPolicy/andon-default-deny")["spec"].update(policyTypes=["Ingress"]),
        rule="default-deny",
        where="NetworkPolicy/*",
        says="denies egress",
    ),
    Mistake(
        name="a policy for nobody",
        plant=lambda p: p.find("NetworkPolicy/andon-canary-calls")["spec"].update(
            podSelector={"matchLabels": {"app": "canary"}}
        ),
        rule="network-policy-selector",
        where="NetworkPolicy/andon-canary-calls",
        says="selects no pods",
        also=frozenset({"network-policy-call"}),
    ),
    Mistake(
        name="a caller that is not there",
        plant=lambda p: p.find("NetworkPolicy/andon-from-trainer")["spec"]["ingress"][0].update(
            {"from": [{"podSelector": {"matchLabels": {"app.kubernetes.io/component": "trainr"}}}]}
        ),
        rule="network-policy-peer",
        where="NetworkPolicy/andon-from-trainer",
        says="finds no pods",
        also=frozenset({"network-policy-call"}),
    ),
    Mistake(
        name="a namespace that nobody asked for",
        plant=lambda p: p.find("NetworkPolicy/andon-from-gateway")["spec"]["ingress"][0]["from"][0].update(
            namespaceSelector={"matchLabels": {"kubernetes.io/metadata.name": "istio-system"}}
        ),
        rule="network-policy-peer",
        where="NetworkPolicy/andon-from-gateway",
        says="namespace istio-system",
        into=PRODUCTION,
    ),
    Mistake(
        name="any namespace",
        plant=lambda p: p.find("NetworkPolicy/andon-from-gateway")["spec"]["ingress"][0]["from"][0].update(
            namespaceSelector={}
        ),
        rule="network-policy-peer",
        where="NetworkPolicy/andon-from-gateway",
        says="pods of any may call",
        into=PRODUCTION,
    ),
    Mistake(
        name="a port that the called pods do not have",
        plant=lambda p: p.find("NetworkPolicy/andon-from-canary")["spec"]["ingress"][0].update(
            ports=[{"port": "rpc", "protocol": "TCP"}]
        ),
        rule="network-policy-port",
        where="NetworkPolicy/andon-from-canary",
        says="has no port rpc",
        also=frozenset({"network-policy-call"}),
    ),
    Mistake(
        name="a call that no policy lets out",
        plant=lambda p: p.find("NetworkPolicy/andon-trainer-calls")["spec"]["egress"].pop(2),
        rule="network-policy-call",
        where="Deployment/andon-trainer",
        says="the call to Deployment/andon-reward:50053 is denied (egress)",
    ),
    Mistake(
        name="a call that no policy lets in",
        plant=lambda p: p.find("NetworkPolicy/andon-from-trainer")["spec"].update(
            podSelector={"matchLabels": {"app.kubernetes.io/name": "andon-sampler"}}
        ),
        rule="network-policy-call",
        where="Deployment/andon-trainer",
        says="the call to Deployment/andon-labeling:50054 is denied (ingress)",
    ),
    # Addresses
    Mistake(
        name="a Service that is not there",
        plant=lambda p: set_datum(p, "andon-trainer", "ANDON_TRAINER_REWARD_TARGET", "dns:///reward:50053"),
        rule="target",
        where="Deployment/andon-trainer",
        says="no Service reward with port 50053",
    ),
    Mistake(
        name="a port that the Service does not have",
        plant=lambda p: set_datum(p, "andon-trainer", "ANDON_TRAINER_REWARD_TARGET", "andon-reward:50052"),
        rule="target",
        where="Deployment/andon-trainer",
        says="no Service andon-reward with port 50052",
    ),
    Mistake(
        name="a sampler that the trainer does not know",
        plant=lambda p: p.find("StatefulSet/andon-sampler")["spec"].update(replicas=3),
        rule="samplers",
        where="Deployment/andon-trainer",
        says="andon-sampler-2",
        into=GPU,
    ),
    Mistake(
        name="weights through a balanced name",
        plant=lambda p: set_datum(
            p, "andon-trainer", "ANDON_TRAINER_POLICY_TARGETS", "dns:///andon-sampler:50051"
        ),
        rule="samplers",
        where="Deployment/andon-trainer",
        says="must know every sampler by itself",
    ),
    Mistake(
        name="a caller that speaks no TLS",
        plant=lambda p: set_datum(p, "andon-trainer", "ANDON_TLS_CA", None),
        rule="tls",
        where="Deployment/andon-trainer",
        says="speaks TLS, and ANDON_TLS_CA is not set",
        into=PRODUCTION,
    ),
    Mistake(
        name="a caller without a certificate",
        plant=lambda p: set_datum(p, "andon-trainer", "ANDON_TLS_CERTIFICATE", None),
        rule="tls",
        where="Deployment/andon-trainer",
        says="asks for a certificate",
        into=PRODUCTION,
    ),
    Mistake(
        name="a name that the certificate does not have",
        plant=lambda p: p.find("Certificate/andon-reward")["spec"].update(dnsNames=["andon-rewards"]),
        rule="tls-name",
        where="Deployment/andon-trainer",
        says="the certificate of Deployment/andon-reward does not name andon-reward",
        into=PRODUCTION,
    ),
    Mistake(
        name="a wildcard that not everybody takes",
        plant=lambda p: p.find("Certificate/andon-policy")["spec"].update(
            dnsNames=["andon-policy", "*.andon-sampler"]
        ),
        rule="tls-name",
        where="Deployment/andon-trainer",
        says="does not name andon-sampler-0.andon-sampler",
        into=PRODUCTION,
    ),
    Mistake(
        name="a name that the Gateway asks for in vain",
        plant=lambda p: p.find("BackendTLSPolicy/andon-policy")["spec"]["validation"].update(
            hostname="policy.example.com"
        ),
        rule="tls-name",
        where="BackendTLSPolicy/andon-policy",
        says="does not name policy.example.com",
        into=PRODUCTION,
    ),
    Mistake(
        name="a caller without a token",
        plant=lambda p: set_datum(p, "andon-trainer", "ANDON_TOKEN_FILE", None),
        rule="token",
        where="Deployment/andon-trainer",
        says="asks for a token",
    ),
    # Routes
    Mistake(
        name="a backend that is not there",
        plant=lambda p: backend(p, rule=0).update(name="andon-canary-policy"),
        rule="route-backend",
        where="GRPCRoute/andon-policy",
        says="no Service andon-canary-policy",
        into=PRODUCTION,
    ),
    Mistake(
        name="weights of nothing",
        plant=lambda p: p.find("GRPCRoute/andon-policy")["spec"]["rules"][1]["backendRefs"][0].update(
            weight=0
        ),
        rule="route-backend",
        where="GRPCRoute/andon-policy",
        says="sends its calls nowhere",
        into=PRODUCTION,
    ),
    Mistake(
        name="a listener that is not there",
        plant=lambda p: p.find("GRPCRoute/andon-policy")["spec"]["parentRefs"][0].update(sectionName="https"),
        rule="route-parent",
        where="GRPCRoute/andon-policy",
        says="no listener https",
        into=PRODUCTION,
    ),
    Mistake(
        name="plain text by name, TLS in truth",
        plant=lambda p: p.find("Service/andon-policy")["spec"]["ports"][0].update(
            appProtocol="kubernetes.io/h2c"
        ),
        rule="tls",
        where="Service/andon-policy",
        says="a port says kubernetes.io/h2c",
        into=PRODUCTION,
    ),
    Mistake(
        name="plain calls to a service that speaks TLS",
        plant=lambda p: p.remove("BackendTLSPolicy/andon-policy"),
        rule="tls",
        where="GRPCRoute/andon-policy",
        says="no BackendTLSPolicy says so",
        into=PRODUCTION,
    ),
    # Probes and the end
    Mistake(
        name="a probe of a port that is not there",
        plant=lambda p: p.container("Deployment/andon-reward")["livenessProbe"]["grpc"].update(port=8082),
        rule="probe",
        where="Deployment/andon-reward",
        says="livenessProbe asks port 8082",
    ),
    Mistake(
        name="a probe of the port that speaks TLS",
        plant=lambda p: p.container("Deployment/andon-reward")["readinessProbe"]["grpc"].update(port=50053),
        rule="probe",
        where="Deployment/andon-reward",
        says="only the port health",
        into=PRODUCTION,
    ),
    Mistake(
        name="no probe",
        plant=lambda p: p.container("Deployment/andon-reward").pop("startupProbe"),
        rule="probe",
        where="Deployment/andon-reward",
        says="has no startupProbe",
    ),
    Mistake(
        name="a kill before the drain's end",
        plant=lambda p: p.pod("Deployment/andon-trainer").update(terminationGracePeriodSeconds=60),
        rule="termination-grace",
        where="Deployment/andon-trainer",
        says="killed after 60 s, but may drain for 105 s",
    ),
]
