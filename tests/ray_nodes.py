"""A real Ray cluster of two nodes on loopback, in a process of its own: its warnings and signals are not the tests'.

Prints its address; then obeys lines: ``lose`` kills the second node as a power cut would, ``end`` (or the end of the
input) takes everything down.
"""

from __future__ import annotations

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
# a loaded machine; Ray's own spelling
os.environ["RAY_raylet_start_wait_time_s"] = "60"  # noqa: SIM112
os.environ["RAY_enable_worker_prestart"] = "0"  # noqa: SIM112

from ray.cluster_utils import Cluster

STORE_BYTES = 80 * 2**20
NODE = {"num_cpus": 1, "object_store_memory": STORE_BYTES, "include_log_monitor": False}


def main() -> None:
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    try:
        second = cluster.add_node(**NODE)
        print(f"address {cluster.address} {cluster.head_node.get_session_dir_path()}", flush=True)
        for line in sys.stdin:
            if line.strip() == "end":
                break
            if line.strip() == "lose":
                cluster.remove_node(second, allow_graceful=False)
                print("lost", flush=True)
    finally:
        cluster.shutdown()
    print("ended", flush=True)


if __name__ == "__main__":
    main()
