"""One process of a training on several workers: `python one_worker.py RUN_FN ARGUMENTS_JSON`, told by TF_CONFIG."""

import importlib
import json
import sys
from types import SimpleNamespace

if __name__ == "__main__":
    module, _, name = sys.argv[1].rpartition(".")
    getattr(importlib.import_module(module), name)(SimpleNamespace(**json.loads(sys.argv[2])))
