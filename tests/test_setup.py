"""The set-up and the packaging: a machine without the right Python is told so, and nothing is left out of a package."""

import ast
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

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


def test_every_direct_requirement_is_locked():
    locked = {line.split("==")[0] for line in (ROOT / "requirements.lock").read_text().split()}
    wanted = [line for line in (ROOT / "requirements.in").read_text().splitlines() if line and not line.startswith("#")]
    names = {re.split(r"[\[<>=]", line)[0].lower() for line in wanted}
    assert names <= locked


def test_lock_names_no_address_and_no_path():
    assert not re.search(r"://|/", (ROOT / "requirements.lock").read_text())


def test_setup_requires_what_the_lock_pins():
    wanted = dict(re.findall(r'"([a-z-]+)(?:\[[\w,]+\])?==([\d.]+)"', (ROOT / "setup.py").read_text()))
    locked = dict(line.split("==") for line in (ROOT / "requirements.lock").read_text().split())
    assert wanted
    assert {name: locked[name] for name in wanted} == wanted


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
