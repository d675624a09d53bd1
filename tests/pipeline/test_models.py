"""Settings of a model are refused before a run starts, and the table names functions that exist."""

import importlib

import pytest

from pipeline import config
from pipeline.config import BUILT_IN
from pipeline.local_runner import check_models
from pipeline.models import MODELS, PREPROCESSING, check_settings
from transform.clip_settings import ClipSettings
from transform.contract import ContractError, load


def test_an_unknown_setting_is_refused_with_its_place_and_a_hint():
    with pytest.raises(ContractError, match=r"models\.ranker\.model\.embeding_width.*did you mean 'embedding_width'"):
        check_settings("ranker", {"embeding_width": 8}, {}, None)


def test_a_training_setting_that_does_not_fit_is_refused():
    with pytest.raises(ContractError, match=r"models\.ranker\.training\.epochs.*got 0"):
        check_settings("ranker", {}, {"epochs": 0}, None)


@pytest.mark.parametrize(
    ("model", "training", "said"),
    [
        ({"width": 16, "filters": [0]}, {}, r"model\.filters\.0: .*greater than 0, got 0"),
        ({"width": 16, "scene": {"scenes": 0}}, {}, r"model\.scene\.scenes: .*greater than or equal to 1"),
        ({"width": 16, "two_stream": True}, {}, "expected clips with optical flow, got none"),
        ({"width": 16, "visual": "i3d"}, {}, "frames of at least 32 pixels, got size 16"),
        ({}, {}, r"model\.width: expected 16, the dimension that the contract gives content vectors, got 128"),
        ({"width": 16}, {"memory_gigabytes": 1}, "clips are always streamed: remove it"),
    ],
)
def test_a_classifier_that_does_not_go_with_clips_or_contract_is_refused_before_anything_runs(model, training, said):
    with pytest.raises(ContractError, match=said):
        check_settings("video_classifier", model, training, ClipSettings(size=16), [16])


@pytest.mark.parametrize("name", sorted(path.stem for path in BUILT_IN.glob("*.yaml")))
def test_built_in_configurations_pass(name):
    settings = config.load(name)
    check_models(settings, load(settings.contract))


def test_vectors_are_compared_with_the_contract_where_somebody_reads_them():
    demo, clips = config.load("demo"), config.load("clips")
    wide = clips.models["video_classifier"].model_copy(update={"model": {"width": 128}})
    check_models(clips.model_copy(update={"models": {"video_classifier": wide}}), load("microvideo"))
    with pytest.raises(ContractError, match="expected 16, the dimension that the contract gives content vectors"):
        check_models(demo.model_copy(update={"models": {**demo.models, "video_classifier": wide}}), load("microvideo"))


@pytest.mark.parametrize("name", MODELS)
def test_named_functions_exist(name):
    for dotted in (PREPROCESSING[MODELS[name].examples], MODELS[name].run_fn):
        module, _, attribute = dotted.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))
