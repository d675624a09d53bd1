"""The command line: quick to answer, and a user's mistake is one line and exit code 2.

Nothing here loads TensorFlow: what a user can get wrong is found before that.
"""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from pipeline import cli

HELP = """
import json, sys
sys.argv = ["shortlist", "--help"]
from pipeline.cli import main
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
SMALL = ("--users", "40", "--videos", "60", "--interactions", "500")


@pytest.fixture
def shortlist(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder; returns exit code, what is on stdout, and on stderr."""
    for name in ("TF_USE_LEGACY_KERAS", "TF_CPP_MIN_LOG_LEVEL", "TF_ENABLE_ONEDNN_OPTS", "PYTHONWARNINGS"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # so that what main() sets is taken back
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["shortlist", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code or 0, *capsys.readouterr()

    return call


@pytest.fixture
def refused(shortlist):
    """Runs a command that must fail as a user's mistake; returns the one line of the error."""

    def call(*arguments):
        code, out, err = shortlist(*arguments)
        assert (code, out) == (cli.EXIT_BAD_INPUT, "")
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        return err.removeprefix("error: ").rstrip()

    return call


@pytest.fixture
def world(shortlist):
    shortlist("import", "demo", "--out", "world", *SMALL)
    return Path("world")


def test_help_is_quick_and_loads_nothing_heavy():
    before = time.monotonic()
    run = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    assert time.monotonic() - before < 8
    code, modules = json.loads(run.stdout.splitlines()[-1])
    assert code == 0
    assert not {"apache_beam", "grpc", "tensorflow", "tf_keras", "tfx"} & set(modules)
    for command in ("demo", "import", "check", "run", "report", "serve", "recommend", "compile"):
        assert re.search(rf"\b{command}\b", run.stdout)


def test_an_imported_demo_passes_the_check_which_counts_its_rows(shortlist):
    code, out, err = shortlist("import", "demo", "--out", "world", *SMALL)
    assert (code, err) == (0, "")
    counts = {t: int(n.replace(",", "")) for t, n in re.findall(r"^ +(\w+) +([\d,]+) rows$", out, re.M)}
    assert counts == {"users": 40, "videos": 60, "interactions": 500, "frame_feedback": counts["frame_feedback"]}
    assert 50 < counts["frame_feedback"] < 250  # of about half of the clicks
    assert "nothing rejected" in out
    assert "World written to world" in out
    code, out, err = shortlist("check", "world")
    assert (code, err) == (0, "")
    assert {t: int(n) for t, n in re.findall(r"^ +(\w+) +(\d+) good rows$", out, re.M)} == counts
    assert "nothing rejected" in out


def test_check_counts_bad_rows_by_reason_and_exits_two(shortlist, world):
    path = world / "interactions.parquet"
    table = pq.read_table(path)
    row = table.slice(0, 1).to_pylist()[0]
    bad = [{**row, "user_id": "nobody"}] * 3 + [{**row, "video_id": "nothing"}] * 2
    pq.write_table(pa.concat_tables([table, pa.Table.from_pylist(bad, table.schema)]), path)
    before = path.read_bytes()
    code, out, err = shortlist("check", world)
    assert (code, err) == (2, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[2] == "interactions 500 good rows"
    assert lines[4:7] == [
        "5 rows rejected",
        "3 interactions: unknown user_id",
        "2 interactions: unknown video_id",
    ]
    assert path.read_bytes() == before


@pytest.mark.parametrize("importer", ["movielens", "amazon", "tables"])
def test_an_importer_names_the_folder_that_is_not_there(refused, importer):
    error = refused("import", importer, "--from", "nowhere", "--out", "world")
    assert error.startswith("nowhere: expected a folder with ")
    assert error.endswith("no such folder")
    assert not Path("world").exists()


def test_a_file_where_a_folder_is_to_be_is_named(refused, world):
    Path("taken").write_text("")
    for command in (
        ("import", "demo", "--out", "taken"),
        ("run", "--config", "demo", "--world", world, "--runs", "taken"),
    ):
        assert refused(*command).startswith("taken")


def test_check_names_what_is_missing(refused, world):
    assert refused("check", "nowhere").startswith("nowhere: expected a world, a folder with users, videos")
    (world / "videos.parquet").unlink()
    error = refused("check", world)
    assert error.startswith("world: the table videos is missing: expected videos.parquet, videos.csv or")
    assert "'nothing'" in refused("check", world, "--contract", "nothing")


@pytest.mark.parametrize("command", [("run",), ("compile", "--out", "spec.json")])
def test_an_unknown_configuration_is_told_the_known_ones(refused, command):
    error = refused(*command, "--config", "demoo", "--world", "world")
    assert error.startswith(
        "no configuration 'demoo': expected one of clips, demo, movielens, movielens_posters, or the path of a .yaml "
        "file"
    )


def test_an_unknown_key_of_a_configuration_is_named_with_the_closest(refused):
    built_in = Path(cli.__file__).parent / "configs" / "demo.yaml"
    Path("mine.yaml").write_text(built_in.read_text(encoding="utf-8") + "\nslits: {by: time}\n", encoding="utf-8")
    error = refused("run", "--config", "mine.yaml", "--world", "world")
    assert error == "mine.yaml: slits: unknown key (did you mean 'splits'?): rename it"


def test_a_run_needs_a_world(refused):
    assert refused("run", "--config", "movielens").startswith("no world: give --world FOLDER")
    assert not Path("runs").exists()


def test_a_world_that_is_not_there_is_refused_before_anything_is_loaded(refused):
    error = refused("run", "--config", "demo", "--world", "nowhere")
    assert error.startswith("nowhere: expected a world, a folder with users, videos and interactions")
    assert not Path("runs").exists()


def test_the_version_is_that_of_the_package(shortlist):
    assert shortlist("--version") == (0, f"{importlib.metadata.version('shortlist')}\n", "")


def test_only_takes_models_of_the_configuration(refused):
    error = refused("run", "--config", "demo", "--world", "world", "--only", "ranker", "--only", "rankr")
    assert re.fullmatch(r"--only rankr: the configuration has .*\branker\b.*", error)
    assert not Path("runs").exists()


@pytest.mark.parametrize("command", [("recommend", "--user", "u1"), ("report",), ("serve",)])
def test_without_a_run_the_way_to_one_is_shown(refused, command):
    error = refused(*command, "--runs", "none")
    assert error.startswith("no run.json below none: start with `shortlist demo`")
    assert not Path("none").exists()


def test_a_folder_without_a_run_is_named_and_left_alone(refused):
    assert refused("recommend", "--user", "u1", "--run", "none").startswith("no run in none: expected none/run.json")
    assert refused("serve", "--models", "none").startswith("no models in none: expected a folder of MODEL/VERSION/")
    assert refused("report", "none").startswith("no run in none: expected run.json in it or a level below")
    assert not Path("none").exists()


def test_a_long_error_stays_one_line_with_its_brackets(refused):
    folder = "a" * 200 + "[red]"
    assert refused("check", folder).startswith(f"{folder}: expected a world")


@pytest.mark.parametrize(
    ("later", "with_topics", "said"),
    [
        (0, 0, None),
        (1200, 1200, "Topics for 1,200 of 1,200 new videos\n"),
        (3, 2, "Topics for 2 of 3 new videos; 1 have no title, cover or known tag to tell them by\n"),
    ],
)
def test_index_says_how_many_new_videos_have_topics(later, with_topics, said, monkeypatch, tmp_path, capfd):
    keys = ("id", "outcome", "started", "finished", "config", "contract", "models")
    (tmp_path / "run.json").write_text(json.dumps({**dict.fromkeys(keys, ""), "world": "w"}))
    done = SimpleNamespace(versions={"feed": "7"}, later=later, with_topics=with_topics)
    monkeypatch.setitem(sys.modules, "pipeline.index", SimpleNamespace(rebuild=lambda run, world: done))
    assert CliRunner().invoke(cli.app, ["index", "--run", str(tmp_path)]).exit_code == 0
    screen = capfd.readouterr().out
    assert "Pushed feed version 7 to" in screen
    assert (said in screen) if said else ("Topics" not in screen)
