"""Runs are found on disk, and a broken record is one clear error."""

import os

import pytest

from pipeline.runs import load_run, newest_run
from transform.contract import ContractError


def test_the_newest_run_is_the_one_that_ended_last(tmp_path):
    for name, ended in (("old", 1), ("new", 3), ("middle", 2)):
        (tmp_path / name).mkdir()
        record = tmp_path / name / "run.json"
        record.write_text("{}", encoding="utf-8")
        os.utime(record, (ended, ended))
    assert newest_run(tmp_path) == tmp_path / "new"


def test_a_truncated_record_names_the_file_and_the_remedy(tmp_path):
    (tmp_path / "run.json").write_text('{"id": "de', encoding="utf-8")
    with pytest.raises(ContractError, match=r"run\.json.*delete it and run again"):
        load_run(tmp_path)


def test_a_folder_without_runs_says_how_to_make_one(tmp_path):
    with pytest.raises(ContractError, match="shortlist demo"):
        newest_run(tmp_path)
