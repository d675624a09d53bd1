"""The set-up and the packaging: a machine without the right Python is told so, and nothing is left out of a package."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent


def test_a_machine_without_python_310_is_told_in_one_line_how_to_get_it(tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "grep"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    other = tools / "python3"
    other.write_text(f"#!{shutil.which('bash')}\nexit 1\n", encoding="utf-8")  # some other version
    other.chmod(0o755)
    done = subprocess.run(
        [str(tools / "bash"), str(ROOT / ".ci" / "install"), str(tmp_path / "venv")],
        env={"PATH": str(tools), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert re.fullmatch(r".*Python 3\.10.*pyenv install 3\.10.*uv python install 3\.10.*\n", done.stderr)
    assert not (tmp_path / "venv").exists()


def locked(name: str) -> dict[str, str]:
    return dict(line.split("==") for line in (ROOT / name).read_text().split())


def required(name: str) -> set[str]:
    lines = (ROOT / name).read_text().splitlines()
    return {re.split(r"[\[<>=]", line)[0].lower() for line in lines if line and not line.startswith(("#", "-r"))}


@pytest.mark.parametrize("name", ["requirements", "requirements-dev"])
def test_every_direct_requirement_is_locked(name):
    assert required(f"{name}.in")
    assert required(f"{name}.in") <= set(locked(f"{name}.lock"))


def test_both_locks_have_the_same_versions_and_the_image_no_tools_of_development():
    runs_on, developed_with = locked("requirements.lock"), locked("requirements-dev.lock")
    assert runs_on.items() < developed_with.items()
    needed_by_others = {"cryptography", "httpx"}
    assert required("requirements-dev.in") & set(runs_on) == needed_by_others


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-dev.lock"])
def test_lock_names_no_address_and_no_path(name):
    assert not re.search(r"://|/", (ROOT / name).read_text())


def test_setup_requires_what_the_lock_pins():
    wanted = dict(re.findall(r'"([a-z-]+)(?:\[[\w,]+\])?==([\d.]+)"', (ROOT / "setup.py").read_text()))
    pinned = locked("requirements.lock")
    assert wanted
    assert {name: pinned[name] for name in wanted} == wanted


def test_pre_commit_runs_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    entries = " ".join(hook["entry"] for hook in hooks)
    assert all(tool in entries for tool in ("ruff check", "ruff format", "mypy"))


def test_package_data_patterns_match_files():
    text = (ROOT / "setup.py").read_text()
    for package, patterns in re.findall(r'"(pipeline|serving|transform)": \[([^\]]+)\]', text):
        for pattern in re.findall(r'"([^"]+)"', patterns):
            assert list((ROOT / package).glob(pattern)), f"{package}: {pattern} matches nothing"


def test_setup_requires_what_the_packages_import():
    packages = ("components", "pipeline", "serving", "trainer", "transform")
    imported = set()
    for path in (path for name in packages for path in (ROOT / name).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(str(node.module).partition(".")[0])
    third_party = imported - set(sys.stdlib_module_names) - set(packages)
    owners: dict[str, set[str]] = {}
    for distribution in importlib.metadata.distributions():
        for file in distribution.files or ():
            if file.suffix in (".py", ".so"):
                name = str(distribution.metadata["Name"]).lower().replace("_", "-")
                owners.setdefault(file.parts[0].partition(".")[0], set()).add(name)
    text = (ROOT / "setup.py").read_text()
    listed = {re.split(r"[\[<>=]", name)[0] for name in re.findall(r'^    "([^"]+)",$', text, re.MULTILINE)}
    assert {module: owners[module] for module in third_party if not owners[module] & listed} == {}


def test_every_benchmark_runs_without_arguments():
    """As `make bench` calls them, one after the other."""
    asking = [p.name for p in (ROOT / "benchmarks").glob("*.py") if "required=True" in p.read_text(encoding="utf-8")]
    assert asking == []
