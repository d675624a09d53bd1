"""One step in its container: `python -m pipeline.container ARGUMENTS`, with the arguments of TFX's own entry point.

TFX's knows `gs://` alone; here a pipeline root, a world and a push destination may be of any file system.
"""

from __future__ import annotations

import runpy

from transform import file_systems

ENTRY = "tfx.orchestration.kubeflow.v2.container.kubeflow_v2_run_executor"


if __name__ == "__main__":
    file_systems.register()
    runpy.run_module(ENTRY, run_name="__main__", alter_sys=True)
