"""One step in its container: `python -m pipeline.container ARGUMENTS`, with the arguments of TFX's own entry point.

TFX's knows `gs://` alone; here a pipeline root, a world and a push destination may be of any file system. And it knows
its own artifacts alone: a spec names others by a title, which cannot say where their class is.
"""

from __future__ import annotations

import os
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from tfx.orchestration.kubeflow.v2 import compiler_utils
from tfx.utils import name_utils

from components.content_embedder.artifact import ContentVectors
from components.frame_embedder.artifact import FrameVectors
from components.topic_learner.artifact import Topics
from components.topic_queues.artifact import QueueSnapshot
from transform import file_systems

ENTRY = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # of a pod's service account, as Kubernetes mounts it

_UNFILLED = re.compile(r"\{\{\$[^}]*\}\}")
ARTIFACTS = (ContentVectors, FrameVectors, QueueSnapshot, Topics)


def name_artifacts() -> None:
    """Say where the classes of our artifacts are, where TFX's entry point looks."""
    paths = {kind.TYPE_NAME: name_utils.get_full_name(kind) for kind in ARTIFACTS}
    compiler_utils.TITLE_TO_CLASS_PATH.update(paths)


def name_namespace(account: Path = ACCOUNT) -> None:
    """Say in which namespace the pod is where TFX's InfraValidator looks: version 2 of the engine has left that out."""
    if (account / "namespace").is_file():
        os.environ.setdefault("KFP_NAMESPACE", (account / "namespace").read_text(encoding="utf-8").strip())


def refuse_unfilled(arguments: Sequence[str]) -> None:
    """Stop where the engine left a parameter out: as it stands, a folder of that very name would be written to."""
    for argument in arguments:
        if found := _UNFILLED.search(argument):
            sys.exit(
                f"expected the engine to fill in {found[0]}, got it as it was: Kubeflow Pipelines does since 2.14, "
                "see kubeflow/README.md"
            )


if __name__ == "__main__":
    refuse_unfilled(sys.argv)
    file_systems.register()
    name_artifacts()
    name_namespace()
    runpy.run_module(ENTRY, run_name="__main__", alter_sys=True)
