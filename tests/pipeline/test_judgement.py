"""A judgement comes from the cache only while nothing changed, whatever was pushed, removed or rolled back since."""

from pipeline.judgement import judgement_key

LAST = {
    "outcome": "pushed",
    "inputs_of": {"ranker": "A"},
    "judgements": {"ranker": "first"},
    "served_after": {"ranker": "2"},
}


def key(last: dict = LAST, inputs: str = "A", served: str = "2") -> str:
    return judgement_key(last, "ranker", inputs, served, now=7.0)


def test_an_unchanged_run_repeats_its_judgement():
    assert key() == "first"


def test_a_refused_run_repeats_its_judgement_too():
    assert key({**LAST, "outcome": "refused"}) == "first"


def test_the_first_run_has_a_key_of_its_own():
    assert key({}, served="") == "nothing served at 7.000000"


def test_going_back_to_an_earlier_configuration_is_judged_again():
    # A pushed version 1, then B pushed 2: the last run is B's, and A is about to run.
    assert key({**LAST, "inputs_of": {"ranker": "B"}}) == "2 served at 7.000000"


def test_an_emptied_push_destination_is_judged_again():
    assert key(served="") == "nothing served at 7.000000"


def test_a_rollback_and_somebody_elses_push_are_judged_again():
    assert key(served="1") == "1 served at 7.000000"
    assert key(served="3") == "3 served at 7.000000"


def test_a_run_that_died_before_it_judged_leaves_no_judgement():
    assert key({**LAST, "outcome": "failed"}) == "2 served at 7.000000"
