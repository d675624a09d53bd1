"""What a run of the pipeline left behind, where `run.json` does not name it."""

from pathlib import Path


def newest(folder: Path) -> Path:
    """The output of a node's last execution, given the folder of that output: executions are numbered."""
    return max(folder.iterdir(), key=lambda path: int(path.name))
