"""What a user may set about models and training: frozen, unknown keys refused with a suggestion."""

from __future__ import annotations

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from transform.contract import ContractError, did_you_mean


class Settings(BaseModel):
    """Base of every configuration of `trainer`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Self:
        """The settings in `values`; `where` names them in errors ("model", "training").

        Raises:
            ContractError: An unknown key, or a value that does not fit.
        """
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ContractError("\n".join(_explain(cls, detail, where) for detail in error.errors())) from error


def _explain(settings: type[BaseModel], detail: Any, where: str) -> str:
    path = ".".join((where, *(str(part) for part in detail["loc"])))
    if detail["type"] != "extra_forbidden":
        return f"{path}: {detail['msg'].removeprefix('Value error, ')}, got {detail['input']!r}"
    known = list(_owner(settings, detail["loc"][:-1]).model_fields)
    hint = did_you_mean(str(detail["loc"][-1]), known)
    return f"{path}: unknown key{hint}: allowed are {', '.join(known)}"


def _owner(settings: type[BaseModel], path: tuple[Any, ...]) -> type[BaseModel]:
    """The settings class that holds the key at `path`."""
    for part in path:
        annotation = settings.model_fields[part].annotation
        options = typing.get_args(annotation) or (annotation,)
        settings = next(option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return settings
