"""What loads gives way to what answers."""

import os
import shutil
import sys
import threading

import pytest

from serving.model_server import models as models_module
from serving.model_server import priority, servable
from serving.model_server.models import Models
from serving.model_server.priority import giving_way

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


def test_work_is_done_at_a_lower_priority_which_nobody_else_keeps():
    before = niceness()
    assert giving_way(niceness) == min(before + 10, 19)
    assert niceness() == before


def test_work_keeps_its_priority_where_there_are_no_requests():
    assert giving_way(niceness, requests=False) == niceness()


def test_what_goes_wrong_in_it_is_raised():
    with pytest.raises(ZeroDivisionError):
        giving_way(lambda: 1 // 0)


def test_where_priorities_cannot_be_changed_the_work_is_done_all_the_same(monkeypatch):
    def forbidden(*_):
        raise PermissionError

    monkeypatch.setattr(priority.os, "setpriority", forbidden)
    assert giving_way(lambda: 3) == 3


def test_variables_are_read_and_warm_up_requests_answered_giving_way(models_dir, monkeypatch):
    """And neither the graph imported nor the version published: those hold Python's lock.

    Before the first version there is nobody to give way to, and whoever waits for it waits for as little as possible.
    """
    at: list[tuple[str, int]] = []

    def noting(name, function):
        def noted(*arguments):
            at.append((name, niceness()))
            return function(*arguments)

        return noted

    monkeypatch.setattr(servable, "_initialise", noting("variables", servable._initialise))
    monkeypatch.setattr(models_module, "warm_up", noting("warm-up", models_module.warm_up))
    monkeypatch.setattr(servable, "_taken_out", noting("graph", servable._taken_out))
    models = Models(str(models_dir))
    models.refresh()
    shutil.copytree(models_dir / "scaler" / "1", models_dir / "scaler" / "2")
    models.refresh()
    here, lower = niceness(), min(niceness() + 10, 19)
    first = [("variables", here), ("warm-up", here)]
    assert at == [*first, ("graph", here), ("variables", lower), ("warm-up", lower)]
