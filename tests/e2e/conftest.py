"""What end-to-end tests of several configurations ask."""

from collections.abc import Callable
from pathlib import Path

import pytest
import typer

from pipeline import cli
from pipeline.config import RunConfig


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[[RunConfig, str, Path], str]:
    """What the screen says of a run from the command line, which leaves with code 3."""

    def run(settings: RunConfig, world: str, folder: Path) -> str:
        with pytest.raises(typer.Exit) as caught:
            cli._run(settings, world, folder)
        assert caught.value.exit_code == 3
        return capfd.readouterr().out

    return run
