"""A controller as a process, for the test that stops it: leads when it can, and moves the weights on and on.

Arguments: kubeconfig, store, name. Prints "leading" when it begins to lead and "refused" when it finds out
that another one does; then it ends.
"""

from __future__ import annotations

import sys
import time
from itertools import cycle
from pathlib import Path

from andon.modeling.store import ModelStore
from services.canary.cluster_errors import NotLeaderError
from services.canary.kubernetes_calls import KubernetesCalls, connect
from services.canary.kubernetes_cluster import Cluster, ClusterNames
from services.canary.kubernetes_writes import Patience
from services.canary.lease import LeaseLeadership, LeaseTimes
from tests.kubernetes_api import NAMESPACE

TIMES = LeaseTimes(duration_s=2, renew_deadline_s=1.4, retry_period_s=0.2)


def main(kubeconfig: str, store: str, name: str) -> None:
    client = connect(kubeconfig=Path(kubeconfig))
    client.user_agent = name
    calls = KubernetesCalls(client, namespace=NAMESPACE)
    lease = LeaseLeadership(calls, name="andon-canary", times=TIMES, identity=name)
    cluster = Cluster(
        calls,
        lease,
        names=ClusterNames(),
        store=ModelStore(Path(store)),
        canary_replicas=1,
        patience=Patience(),
    )
    lease.start()
    while not lease.is_leader():
        time.sleep(0.01)
    cluster.load_state()
    print("leading", flush=True)  # noqa: T201
    try:
        for percent in cycle((5, 50)):
            cluster.route(percent)
    except NotLeaderError:
        print("refused", flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])
