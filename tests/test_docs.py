"""What the documents say exists, exists."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FOLDERS = ("", "benchmarks", "components", "docs", "kubeflow", "pipeline", "serving", "trainer", "transform")
DOCUMENTS = sorted({p for f in FOLDERS for p in (ROOT / f).glob("**/*.md" if f else "*.md") if p.is_file()})
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def broken_links(document: Path) -> list[str]:
    targets = [t.partition("#")[0] for t in LINK.findall(text(document)) if "://" not in t and not t.startswith("#")]
    return [target for target in targets if not (document.parent / target).exists()]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", text(ROOT / "Makefile"), re.MULTILINE))


def named(pattern: str, document: Path) -> set[str]:
    """Matches inside code: spans in backticks, and indented or fenced blocks."""
    code = re.findall(r"`[^`\n]+`|^ {4}.*$|^```.*?^```", text(document), re.MULTILINE | re.DOTALL)
    return {name for piece in code for name in re.findall(pattern, piece)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_relative_link_resolves(document):
    assert broken_links(document) == []


def test_a_broken_link_is_found(tmp_path):
    document = tmp_path / "page.md"
    document.write_text("[a](page.md) [b](gone.md#x) [c](https://example.org/gone.md) [d](#here)", encoding="utf-8")
    assert broken_links(document) == ["gone.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_make_target_named_exists(document):
    assert named(r"(?m)(?:^|`)\s*make ([a-z][a-z-]*)", document) <= make_targets()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_command_named_exists(document):
    import typer.main

    from pipeline.cli import app

    commands = typer.main.get_command(app).commands
    assert named(r"(?<![\w/-])shortlist ([a-z]+)", document) <= set(commands)
    importers = named(r"(?<![\w/-])shortlist import ([a-z]+)", document)
    assert importers <= set(commands["import"].commands)


def test_the_readme_names_every_command():
    import typer.main

    from pipeline.cli import app

    assert named(r"(?<![\w/-])shortlist ([a-z]+)", ROOT / "README.md") >= set(typer.main.get_command(app).commands)


def test_decisions_are_numbered_without_gaps_short_and_listed():
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(p.name[:4]) for p in pages] == list(range(1, len(pages) + 1))
    listed = text(ROOT / "docs" / "architecture.md")
    for page in pages:
        assert len(text(page).splitlines()) <= 40
        assert f"decisions/{page.name}" in listed
        assert text(page).startswith(f"# {int(page.name[:4])}. ")


def test_the_license_is_the_whole_apache_license():
    license_text = text(ROOT / "LICENSE")
    assert "Apache License" in license_text
    assert "END OF TERMS AND CONDITIONS" in license_text


def test_hooks_before_a_commit_need_no_network():
    config = yaml.safe_load(text(ROOT / ".pre-commit-config.yaml"))
    assert [repo["repo"] for repo in config["repos"]] == ["local"]


def test_every_behaviour_of_the_conformance_list_has_a_test():
    rows = [line for line in text(ROOT / "docs" / "conformance.md").splitlines() if line.startswith("| ")]
    behaviours = [row for row in rows if not row.startswith("| behaviour")]
    written = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*/test_*.py"))
    known = set(re.findall(r"^(?:async )?def (test_\w+)", written, re.MULTILINE))
    assert len(behaviours) > 35
    for row in behaviours:
        assert (tests := set(re.findall(r"`(test_\w+)`", row))), row
        assert tests <= known, f"{tests - known} is not among the tests"
