"""The contract: every feature of a dataset, declared once.

A contract is a YAML file (`transform/contracts/*.yaml`, or a user's own). Schema, parse spec, preprocessing, model
inputs, embedding tables, evaluation slices, request validation and `docs/features.md` are all derived from it. Code
asks for features by kind and role, never by name, so that adding a feature is one entry in the YAML.

This module imports neither TensorFlow nor anything else that is slow: clients and the command line load it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

BUILT_IN = Path(__file__).parent / "contracts"
NAME = r"^[a-z][a-z0-9_]*$"  # of features and vocabularies: they become names of tensors and files


class Kind(str, Enum):
    """What a feature's value is: it decides preprocessing and the shape a model sees.

    B is the batch, L max_length, D dimension.
    """

    ID = "id"  # one categorical value; int64 [B], 0 = missing
    IDS = "ids"  # a set of categorical values; int64 [B, L], 0 = padding
    HISTORY = "history"  # a sequence of ids, most recent last; int64 [B, L], 0 = padding after the last entry
    NUMBER = "number"  # float32 [B], scaled
    TEXT = "text"  # words of a string; int64 [B, L], 0 = padding
    VECTOR = "vector"  # float32 [B, D]; all zeros = missing


class Role(str, Enum):
    """Who a feature describes."""

    USER = "user"
    VIDEO = "video"
    CONTEXT = "context"
    LABEL = "label"
    WEIGHT = "weight"
    SLICE = "slice"  # for evaluation by group; no model reads it
    FEEDBACK = "feedback"  # on frames, for evaluation: only examples of the test split hold it


INPUT_ROLES = (Role.USER, Role.VIDEO, Role.CONTEXT)
MULTI_VALUED = (Kind.IDS, Kind.HISTORY, Kind.TEXT)
CATEGORICAL = (Kind.ID, *MULTI_VALUED)
TABLES = ("users", "videos", "interactions")

# What ImpressionExampleGen can compute from strictly earlier events: `source: derived.NAME` -> the kind it must have.
DERIVED: dict[str, Kind] = {
    "user_history": Kind.HISTORY,  # videos the user reacted to positively
    "user_events": Kind.NUMBER,  # how many events the user had
    "user_positive_rate": Kind.NUMBER,  # (positives + 1) / (events + 2) of the user
    "user_category_events": Kind.NUMBER,  # how many events the user had with videos of this primary category
    "user_category_positive_rate": Kind.NUMBER,  # (positives + 1) / (events + 2) of those
    "video_events": Kind.NUMBER,
    "video_positive_rate": Kind.NUMBER,
    "video_age_hours": Kind.NUMBER,  # hours from published_at to the impression, at least 0
    "content_match": Kind.NUMBER,  # cosine of the video's content with what the user took to, -1 to 1
    "hour_of_day": Kind.ID,  # "0" to "23", UTC
    "user_novelty": Kind.ID,  # "new" where the train split holds no labelled (non-neutral) event of the user
    "video_novelty": Kind.ID,
    "history_length": Kind.ID,  # "0", "1-5", "6-20" or "21+" entries in the user's history
    "modalities": Kind.ID,  # which content vectors of the contract the video has: "visual+audio", or "none"
    "liked_frames": Kind.IDS,  # indices of the frames that the user liked of the video, from `frame_feedback`
}
# What ContentEmbedder makes of a video's media: `source: content.NAME`, of kind vector.
CONTENT = ("visual_vector", "audio_vector", "text_vector", "fused_vector")
LOOK = "content.look_vector"  # what FrameEmbedder makes, of kind vector: the mean of what a video's frames look like
TOPICS = "content.topics"  # what TopicLearner makes, of kind ids: the topics of a video, best first
LIKED_FRAMES = "derived.liked_frames"
WHOLE_TRAIN_SPLIT = ("user_novelty", "video_novelty")  # these look at later events too: no model may read them
MADE_FROM = {  # the column of `videos` that a derivation needs
    "video_age_hours": "published_at",
    "user_category_events": "primary_category",
    "user_category_positive_rate": "primary_category",
}


# Derivations that take both a user (or an instant) and a video to know.
ABOUT_BOTH = ("video_age_hours", "user_category_events", "user_category_positive_rate", "content_match")


class ContractError(ValueError):
    """A contract, world or request that does not fit: what was expected, what came, where, and the remedy."""


class Scale(str, Enum):
    """How a number is brought to a common range, fitted on the train split."""

    NONE = "none"
    ZSCORE = "zscore"
    LOG = "log"  # log(1 + x), then zscore: for counts
    MINMAX = "minmax"


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Vocabulary(_Strict):
    """The ids of one namespace, learned from the train split; features that name it share one embedding table."""

    max_size: int | None = Field(default=None, gt=0)
    min_count: int = Field(default=1, ge=1)
    oov_buckets: int = Field(default=1, ge=1)


class Feature(_Strict):
    """One feature; see `docs/features.md` for the built-in ones."""

    name: str = Field(pattern=NAME)
    kind: Kind
    role: Role
    source: str
    description: str = ""
    vocabulary: str | None = None
    max_length: int | None = Field(default=None, gt=0)
    dimension: int | None = Field(default=None, gt=0)
    scale: Scale = Scale.NONE
    unit: str = ""
    default: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    positive_above: float | None = None
    negative_below: float | None = None
    optional: bool = False

    @property
    def table(self) -> str:
        """`users`, `videos`, `interactions`, `derived` or `content`."""
        return self.source.partition(".")[0]

    @property
    def column(self) -> str:
        """Column of `table`, or the name of the derivation."""
        return self.source.partition(".")[2]

    @property
    def about(self) -> Literal["user", "video", "both"]:
        """What must be known to know the value; an instant counts as part of the user who asks then."""
        if self.table == "derived" and self.column in ABOUT_BOTH:
            return "both"
        of_video = self.table in ("videos", "content") or self.source.startswith("derived.video_")
        return "video" if of_video else "user"

    @property
    def multi_valued(self) -> bool:
        """Whether one example holds any number of values."""
        return self.kind in MULTI_VALUED

    @model_validator(mode="after")
    def _check_source(self) -> Feature:
        if not self.column or self.table not in (*TABLES, "derived", "content"):
            raise ValueError(
                f"source is {self.source!r}: expected TABLE.COLUMN with a table of {', '.join(TABLES)}, derived.NAME "
                "or content.NAME"
            )
        if self.source == TOPICS and self.kind is not Kind.IDS:
            raise ValueError(f"source {TOPICS} has kind ids: write that instead of {self.kind.value}")
        vectors = (*CONTENT, LOOK.removeprefix("content."))
        is_vector = self.column in vectors and self.kind is Kind.VECTOR
        if self.table == "content" and self.source != TOPICS and not is_vector:
            expected = f"content.NAME is of kind vector, and NAME one of {', '.join(vectors)}; {TOPICS} is of kind ids"
            raise ValueError(f"source {expected}")
        if self.table != "derived":
            return self
        if self.column not in DERIVED:
            raise ValueError(f"source derived.{self.column} is unknown{did_you_mean(self.column, DERIVED)}")
        if self.kind is not DERIVED[self.column]:
            raise ValueError(
                f"source {self.source} has kind {DERIVED[self.column].value}: write that instead of {self.kind.value}"
            )
        return self

    @model_validator(mode="after")
    def _check_kind(self) -> Feature:
        needs_vocabulary = self.kind in CATEGORICAL and self.role in INPUT_ROLES
        if needs_vocabulary and self.vocabulary is None:
            raise ValueError(
                f"kind {self.kind.value} needs a vocabulary: add `vocabulary: NAME` and declare it under `vocabularies`"
            )
        if not needs_vocabulary and self.vocabulary is not None:
            raise ValueError(f"kind {self.kind.value} with role {self.role.value} has no vocabulary: remove it")
        if self.multi_valued is (self.max_length is None):
            verb = "needs" if self.multi_valued else "takes no"
            raise ValueError(f"kind {self.kind.value} {verb} max_length")
        if (self.kind is Kind.VECTOR) is (self.dimension is None):
            verb = "needs a" if self.kind is Kind.VECTOR else "takes no"
            raise ValueError(f"kind {self.kind.value} {verb} dimension")
        number_only = ("scale", "default", "minimum", "maximum")
        given = [key for key in number_only if key in self.model_fields_set]
        if given and self.kind is not Kind.NUMBER:
            raise ValueError(f"{given[0]} is for kind number, and this is {self.kind.value}: remove it")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is above maximum {self.maximum}: swap them")
        return self

    @model_validator(mode="after")
    def _check_role(self) -> Feature:
        if self.role in (Role.LABEL, Role.WEIGHT) and (self.kind is not Kind.NUMBER or self.table != "interactions"):
            raise ValueError(f"role {self.role.value} must be kind number with a source in interactions")
        if self.role is not Role.SLICE and self.table == "derived" and self.column in WHOLE_TRAIN_SPLIT:
            raise ValueError(
                f"source {self.source} looks at the whole train split, so a model would see the future: "
                f"expected role slice, got {self.role.value}: write `role: slice`, or remove the feature"
            )
        if (self.role is Role.FEEDBACK) is not (self.source == LIKED_FRAMES):
            raise ValueError(f"source {LIKED_FRAMES} and role feedback go together, so that no model learns from it")
        if self.role is Role.SLICE and self.kind is not Kind.ID:
            raise ValueError("role slice must be kind id")
        thresholds = (self.positive_above, self.negative_below)
        if self.role is not Role.LABEL:
            if thresholds != (None, None):
                raise ValueError("positive_above and negative_below are for role label: remove them")
        elif self.positive_above is None or self.negative_below is None or self.negative_below > self.positive_above:
            raise ValueError(
                "role label needs positive_above and a negative_below that is not larger "
                "(between them an event is neutral: no impression, but it counts as seen)"
            )
        return self


class Contract(_Strict):
    """All features of one dataset.

    Attributes:
        name: What the contract is called.
        vocabularies: Id namespaces by name.
        features: The features, in the order models see them.
    """

    name: str
    vocabularies: dict[Annotated[str, Field(pattern=NAME)], Vocabulary]
    features: tuple[Feature, ...]

    @model_validator(mode="after")
    def _check_names(self) -> Contract:
        seen: set[str] = set()
        for index, feature in enumerate(self.features):
            if feature.name in seen:
                raise ValueError(f"features.{index}: the name {feature.name!r} is taken: every feature needs its own")
            seen.add(feature.name)
            if feature.vocabulary is not None and feature.vocabulary not in self.vocabularies:
                hint = did_you_mean(feature.vocabulary, self.vocabularies)
                raise ValueError(
                    f"features.{index}: vocabulary {feature.vocabulary!r} is not declared under `vocabularies`{hint}"
                )
        used = {feature.vocabulary for feature in self.features}
        for vocabulary in self.vocabularies:
            if vocabulary not in used:
                raise ValueError(f"vocabularies.{vocabulary}: no feature uses it: remove it")
        return self

    @model_validator(mode="after")
    def _check_roles(self) -> Contract:
        for role, allowed, expected in ((Role.LABEL, (1,), "one"), (Role.WEIGHT, (0, 1), "at most one")):
            count = len(self.select(roles=(role,)))
            if count not in allowed:
                raise ValueError(f"features: expected {expected} of role {role.value}, got {count}")
        for source, role in (("users.user_id", Role.USER), ("videos.video_id", Role.VIDEO)):
            if not any(f.source == source and f.kind is Kind.ID and f.role is role for f in self.features):
                raise ValueError(
                    f"features: one with kind id, role {role.value} and source {source} is needed, "
                    "as the key of examples"
                )
        for index, feature in enumerate(self.features):
            derived_history = feature.kind is Kind.HISTORY and feature.table == "derived"
            if derived_history and feature.vocabulary != self.video_key.vocabulary:
                raise ValueError(
                    f"features.{index}: {feature.source} holds video ids: "
                    f"its vocabulary must be {self.video_key.vocabulary!r}, got {feature.vocabulary!r}"
                )
        return self

    @model_validator(mode="after")
    def _check_leaks(self) -> Contract:
        targets = {f.source: f for f in self.select(roles=(Role.LABEL, Role.WEIGHT))}
        for index, feature in enumerate(self.features):
            target = targets.get(feature.source)
            if target is not None and feature.role in (*INPUT_ROLES, Role.SLICE):
                raise ValueError(
                    f"features.{index}: {feature.source} is the source of the {target.role.value} {target.name!r}, "
                    f"known only after the impression: give {feature.name!r} another source, or remove it"
                )
        return self

    def select(
        self, kinds: tuple[Kind, ...] | None = None, roles: tuple[Role, ...] | None = None
    ) -> tuple[Feature, ...]:
        """Features of any of the given kinds and any of the given roles, in the contract's order; None means all."""
        return tuple(
            f for f in self.features if (kinds is None or f.kind in kinds) and (roles is None or f.role in roles)
        )

    @property
    def inputs(self) -> tuple[Feature, ...]:
        """What a model may read, and what a request holds: the features of role user, video or context."""
        return self.select(roles=INPUT_ROLES)

    def needs(self, table: str) -> list[tuple[Feature, str]]:
        """Each feature made from a column of the table, as it is or by a derivation, with that column."""
        if table == "frame_feedback":
            return [(self.feedback, "liked")] if self.feedback else []
        if table == "video_topics":
            return [(f, f.column) for f in self.features if f.source == TOPICS]
        if table == "looks":
            return [(f, f.column) for f in self.features if f.source == LOOK]
        own = [(f, f.column) for f in self.features if f.table == table and f.source not in (TOPICS, LOOK)]
        if table == "content":
            own += [(f, "fused_vector") for f in self.features if f.source == "derived.content_match"]
        if table != "videos":
            return own
        derived = [f for f in self.features if f.table == "derived" and f.column in MADE_FROM]
        return own + [(f, MADE_FROM[f.column]) for f in derived]

    @property
    def label(self) -> Feature:
        """The label."""
        return self.select(roles=(Role.LABEL,))[0]

    @property
    def weight(self) -> Feature | None:
        """The example weight, if there is one."""
        return next(iter(self.select(roles=(Role.WEIGHT,))), None)

    @property
    def histories(self) -> tuple[Feature, ...]:
        """What the user took to before, as ids of videos."""
        return tuple(f for f in self.select(kinds=(Kind.HISTORY,)) if f.table == "derived")

    @property
    def feedback(self) -> Feature | None:
        """Which frames were liked, if that is known."""
        return next(iter(self.select(roles=(Role.FEEDBACK,))), None)

    @property
    def user_key(self) -> Feature:
        """The feature that holds the user's id."""
        return next(f for f in self.features if f.source == "users.user_id" and f.kind is Kind.ID)

    @property
    def video_key(self) -> Feature:
        """The feature that holds the video's id."""
        return next(f for f in self.features if f.source == "videos.video_id" and f.kind is Kind.ID)

    def feature(self, name: str) -> Feature:
        """The feature of that name.

        Raises:
            ContractError: There is none.
        """
        for feature in self.features:
            if feature.name == name:
                return feature
        hint = did_you_mean(name, [f.name for f in self.features])
        raise ContractError(f"contract {self.name!r} has no feature {name!r}{hint}")

    def to_json(self) -> str:
        """The contract as JSON, for `from_json`: how it travels to Transform and Trainer."""
        return self.model_dump_json(exclude_unset=True)

    @classmethod
    def from_json(cls, text: str) -> Contract:
        """The contract that `to_json` wrote."""
        return cls.model_validate_json(text)


def load(name_or_path: str) -> Contract:
    """The contract of a built-in name ("microvideo") or in a YAML file.

    Raises:
        ContractError: No such contract, or it is not valid; the message names file, line and remedy.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = BUILT_IN / f"{name_or_path}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in BUILT_IN.glob("*.yaml"))
        raise ContractError(
            f"no contract {name_or_path!r}{did_you_mean(name_or_path, known)}: "
            f"expected one of {', '.join(known)}, or the path of a .yaml file"
        )
    return parse(read_text(path), where=str(path))


def parse(text: str, where: str = "contract") -> Contract:
    """The contract in a YAML text; `where` names it in errors.

    Raises:
        ContractError: Not YAML, or not a valid contract.
    """
    document, content = parse_yaml(text, where)
    if document is None or not isinstance(content, dict):
        raise ContractError(
            f"{where}: expected a mapping with name, vocabularies and features, got {type(content).__name__}"
        )
    try:
        return Contract.model_validate(content)
    except ValidationError as error:
        lines = [_explain(detail, document, content, where) for detail in error.errors()]
        raise ContractError("\n".join(lines)) from error


def _explain(detail: Any, document: yaml.Node, content: dict[str, Any], where: str) -> str:
    location = tuple(detail["loc"])
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error" and not location:  # raised by Contract: the message starts with its own location
        prefix, _, rest = message.partition(": ")
        parts = prefix.split(".")
        if parts[0] in ("features", "vocabularies"):
            location, message = tuple(int(p) if p.isdigit() else p for p in parts), rest
    if detail["type"] == "extra_forbidden":
        key, known = str(location[-1]), _known_keys(location)
        message = f"unknown key {key!r}{did_you_mean(key, known)}: allowed are {', '.join(known)}"
    elif detail["type"] == "missing":
        message = f"the key {location[-1]!r} is required: add it"
    elif detail["type"] != "value_error":
        message = f"{message}, got {detail['input']!r}"
    line = _line(document, location)
    return f"{where}, line {line}{_owner(content, location)}: {message}"


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    if len(location) == 1:
        return list(Contract.model_fields)
    return list((Feature if location[0] == "features" else Vocabulary).model_fields)


def _owner(content: dict[str, Any], location: tuple[int | str, ...]) -> str:
    if len(location) < 2:
        return f" ({location[0]})" if location else ""
    if location[0] == "features" and isinstance(location[1], int):
        entry = content["features"][location[1]]
        key = f", {location[2]}" if len(location) > 2 else ""
        return f" (feature {entry.get('name', location[1])!r}{key})" if isinstance(entry, dict) else ""
    return f" ({'.'.join(str(part) for part in location)})"


def _line(node: yaml.Node, location: tuple[int | str, ...]) -> int:
    """The line, from 1, of the deepest part of `location` that exists in the document."""
    line = node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        entry = next(((key, value) for key, value in pairs if key.value == str(part)), None)
        if entry is None:
            break
        line, node = entry[0].start_mark.line + 1, entry[1]
    return line


def read_text(path: Path) -> str:
    """A text file of the user's.

    Raises:
        ContractError: It is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ContractError(
            f"{path}: expected UTF-8, {error.reason} at byte {error.start}: save it as UTF-8"
        ) from error


def parse_yaml(text: str, where: str) -> tuple[yaml.Node | None, Any]:
    """The nodes of a YAML text, which know their lines (None of an empty one), and its content.

    Raises:
        ContractError: Not YAML, or a key is given twice: YAML would let the later one win in silence.
    """
    try:
        document, content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ContractError(f"{where}: not valid YAML: {error}") from error
    if document is not None:
        _refuse_duplicate_keys(document, where)
    return document, content


def _refuse_duplicate_keys(node: yaml.Node, where: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for child in node.value:
            _refuse_duplicate_keys(child, where)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, child in node.value:
            if key.value in seen:
                line = key.start_mark.line + 1
                raise ContractError(f"{where}, line {line}: the key {key.value!r} is given twice: remove one")
            seen.add(key.value)
            _refuse_duplicate_keys(child, where)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean 'x'?)` where one of the known names is close, else nothing; for messages."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
