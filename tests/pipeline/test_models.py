"""Settings of a model are refused before a run starts, and the table names functions that exist."""

import importlib

import pytest

from pipeline.models import MODELS, PREPROCESSING, check_settings
from transform.contract import ContractError


def test_an_unknown_setting_is_refused_with_its_place_and_a_hint():
    with pytest.raises(ContractError, match=r"models\.ranker\.model\.embeding_width.*did you mean 'embedding_width'"):
        check_settings("ranker", {"embeding_width": 8}, {})


def test_a_training_setting_that_does_not_fit_is_refused():
    with pytest.raises(ContractError, match=r"models\.ranker\.training\.epochs.*got 0"):
        check_settings("ranker", {}, {"epochs": 0})


@pytest.mark.parametrize("name", MODELS)
def test_named_functions_exist(name):
    for dotted in (PREPROCESSING[MODELS[name].examples], MODELS[name].run_fn):
        module, _, attribute = dotted.rpartition(".")
        assert callable(getattr(importlib.import_module(module), attribute))
