"""The house keeps its shape: which package may import what, and where no Python belongs."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("components", "pipeline", "serving", "trainer", "transform")
HEAVY = ("apache_beam", "grpc", "tensorflow", "tensorflow_serving", "tfx")

# What a package must not import; `pipeline` names trainer by dotted strings only.
FORBIDDEN = {
    "transform": {"apache_beam", "components", "grpc", "pipeline", "serving", "tensorflow_serving", "tfx", "trainer"},
    "trainer": {"apache_beam", "components", "grpc", "pipeline", "serving", "tfx"},
    "components": {"grpc", "pipeline", "serving", "trainer"},  # but see MAY_ASK
    "serving": {"apache_beam", "components", "pipeline", "tfx", "trainer"},
    "pipeline": {"trainer"},
}


# Components that ask a model as a client would, or fill the queues that clients read.
MAY_ASK = ("feed_assembler", "serving_check", "topic_queues")


def imports(source: Path | ast.AST) -> list[str]:
    names: list[str] = []
    tree = ast.parse(source.read_text(encoding="utf-8")) if isinstance(source, Path) else source
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def tops(source: Path | ast.AST) -> set[str]:
    return {name.partition(".")[0] for name in imports(source)}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_what_lies_below_it(package: str):
    allowed = {ROOT / "components" / name: {"serving"} for name in MAY_ASK}
    wrong = {
        str(path.relative_to(ROOT)): found
        for path in (ROOT / package).rglob("*.py")
        if (found := tops(path) & FORBIDDEN[package] - allowed.get(path.parent, set()))
    }
    assert wrong == {}


def test_serving_knows_of_transform_only_the_contract_what_a_request_for_a_feed_holds_and_where_files_may_lie():
    for path in (ROOT / "serving").rglob("*.py"):
        used = {name for name in imports(path) if name.startswith("transform.")}
        assert all(
            name.startswith(("transform.contract", "transform.feed", "transform.file_systems")) for name in used
        ), f"{path}: {used}"


def test_trainer_knows_of_tensorflow_serving_only_what_warms_a_model_up():
    """Messages, and where the model is written; grpc stays forbidden."""
    used = {
        p.name: {n for n in imports(p) if n.startswith("tensorflow_serving")} for p in (ROOT / "trainer").rglob("*.py")
    }
    messages = {"predict_pb2", "prediction_log_pb2"}
    assert {name: found for name, found in used.items() if found} == {
        "export.py": {"tensorflow_serving.apis", *(f"tensorflow_serving.apis.{name}" for name in messages)}
    }


def test_tensorflow_is_imported_in_serving_only_by_the_model_server():
    outside = [p for p in (ROOT / "serving").rglob("*.py") if "model_server" not in p.parts]
    assert {str(p) for p in outside if tops(p) & {"tensorflow", "tf_keras"}} == set()


def test_contract_module_is_light():
    for name in ("contract", "feed"):
        assert not tops(ROOT / "transform" / f"{name}.py") & {*HEAVY, "numpy", "pyarrow", "tensorflow_transform"}


def test_command_line_and_package_files_import_nothing_heavy():
    for path in [ROOT / "pipeline" / "cli.py", *(p for name in PACKAGES for p in (ROOT / name).rglob("__init__.py"))]:
        on_load = ast.Module(
            [
                n
                for n in ast.parse(path.read_text(encoding="utf-8")).body
                if isinstance(n, (ast.Import, ast.ImportFrom))
            ],
            [],
        )
        assert not tops(on_load) & set(HEAVY), f"{path} imports {tops(on_load) & set(HEAVY)} on load"


def test_kubeflow_folder_holds_no_python():
    assert (ROOT / "kubeflow" / "Dockerfile").is_file()
    assert list((ROOT / "kubeflow").rglob("*.py")) == []


def test_image_copies_every_package_and_is_given_it():
    copied = re.findall(
        r"^COPY (?!--from)(.*) \S+$", (ROOT / "kubeflow" / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE
    )
    names = {name for line in copied for name in line.split()}
    assert names == {*PACKAGES, "pyproject.toml", "requirements.lock", "setup.py"}
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == names


def test_the_image_starts_workers_of_beam_in_the_python_that_has_the_packages():
    lines = (ROOT / "kubeflow" / "Dockerfile").read_text(encoding="utf-8").splitlines()
    assert 'ENTRYPOINT ["/opt/apache/beam/boot"]' in lines
    assert "ENV RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1" in lines  # else it makes one where its user may not write


def test_no_module_is_a_drawer_for_everything():
    names = {p.stem for name in PACKAGES for p in (ROOT / name).rglob("*.py")} | {
        p.name for name in PACKAGES for p in (ROOT / name).rglob("*") if p.is_dir()
    }
    assert not names & {"utils", "util", "helpers", "helper", "common", "misc"}


def test_tests_folder_has_no_package_files():
    assert list((ROOT / "tests").rglob("__init__.py")) == []


def test_every_package_folder_is_packaged():
    source = [p for name in PACKAGES for p in (ROOT / name).rglob("*.py")]
    assert [str(p) for p in source if not (p.parent / "__init__.py").is_file()] == []
