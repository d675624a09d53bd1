"""Which classifier content vectors are of: told beside them, beside examples that hold them, in models of those.

Vectors of two classifiers lie in two spaces. A model that learned from one must not be served with the other's.
"""

from __future__ import annotations

from components.world import files

_FILE = "content_made_by.txt"
_OF_MODEL = "assets.extra"


def write(folder: str, identity: str) -> None:
    """Note whose the vectors in a folder are; nothing for ""."""
    if identity:
        with files.writing(files.join(folder, _FILE)) as file:
            file.write(identity.encode())


def read(folder: str) -> str:
    """Whose the vectors in a folder are; "" where none are told of."""
    path = files.join(folder, _FILE)
    if not files.is_file(path):
        return ""
    with files.reading(path) as file:
        return file.read().decode()


def read_model(model: str) -> str:
    """Whose vectors a SavedModel learned from; "" where it learned from none."""
    return read(files.join(model, _OF_MODEL))


def write_model(model: str, identity: str) -> None:
    """Note in a SavedModel whose vectors it learned from."""
    files.make_folder(files.join(model, _OF_MODEL))
    write(files.join(model, _OF_MODEL), identity)


def differs(model: str, content: str | None) -> bool:
    """Whether a SavedModel learned from vectors of another classifier than those in the folder `content` are of."""
    return read_model(model) not in ("", read(content) if content else "")
