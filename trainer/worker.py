"""One process of a training on several workers: `python -m trainer.worker ARGUMENTS.json`, told its part by TF_CONFIG.

The file holds `run_fn`, the dotted path of a function that trains, and the attributes of its FnArgs.
"""

from __future__ import annotations

import importlib
import json
import sys
from types import SimpleNamespace

import tensorflow as tf

from transform import file_systems


def main(path: str) -> None:
    """Call what a file of arguments names with what it holds."""
    file_systems.register()
    with tf.io.gfile.GFile(path) as file:
        arguments = json.loads(file.read())
    module, _, function = arguments.pop("run_fn").rpartition(".")
    getattr(importlib.import_module(module), function)(SimpleNamespace(**arguments))


if __name__ == "__main__":
    main(sys.argv[1])
