"""One step in its container: `python -m pipeline.container ARGUMENTS`, with the arguments of TFX's own entry point.

TFX's knows `gs://` alone; here a pipeline root, a world and a push destination may be of any file system.
"""

from __future__ import annotations

import os
import runpy
from pathlib import Path

from transform import file_systems

ENTRY = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # of a pod's service account, as Kubernetes mounts it


def name_namespace(account: Path = ACCOUNT) -> None:
    """Say in which namespace the pod is where TFX's InfraValidator looks: version 2 of the engine has left that out."""
    if (account / "namespace").is_file():
        os.environ.setdefault("KFP_NAMESPACE", (account / "namespace").read_text(encoding="utf-8").strip())


if __name__ == "__main__":
    file_systems.register()
    name_namespace()
    runpy.run_module(ENTRY, run_name="__main__", alter_sys=True)
