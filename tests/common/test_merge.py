"""Layers of a config: later ones win, and nothing falls away without a word."""

import pytest
from building.configs import all_configs

from common.config.merge import Layer, merge
from common.errors import InputError
from deploy.config import RunConfig
from deploy.study.config import StudyConfig

RENAMED = [(cls, old) for cls in all_configs() for old in cls.renamed]


def laid(*trees, cls=RunConfig):
    """(tree, what was told)."""
    merged = merge(cls, [Layer(tree, f"layer {number}") for number, tree in enumerate(trees)])
    return merged.tree, merged.told


def test_later_layers_win_key_by_key_and_lists_are_replaced():
    below = {"learner": {"steps": 1, "optimizer": {"betas": [0.1, 0.2], "ema": 0.5}}, "seed": 3}
    above = {"learner": {"optimizer": {"betas": [0.9, 0.9]}}}
    tree, told = laid(below, above, {"learner": {"steps": 7}})
    assert tree == {
        "learner": {"steps": 7, "optimizer": {"betas": [0.9, 0.9], "ema": 0.5}},
        "seed": 3,
    }
    assert told == []
    assert below["learner"]["steps"] == 1, "layers stay as they are"


def test_another_kind_keeps_what_it_has_and_tells_what_it_has_not():
    below = {"objective": {"kind": "varkd", "gate": {"tau": 1.0}, "reduction": "seq_mean"}}
    tree, told = laid(below, {"objective": {"kind": "gkd"}})
    assert tree == {"objective": {"reduction": "seq_mean", "kind": "gkd"}}
    assert told == ["objective.kind is gkd instead of varkd: dropped gate"]


def test_a_layer_that_names_the_same_kind_drops_nothing():
    below = {"objective": {"kind": "varkd", "gate": {"tau": 1.0}}}
    tree, told = laid(below, {"objective": {"kind": "varkd", "gate": {"mode": "none"}}})
    assert tree["objective"]["gate"] == {"tau": 1.0, "mode": "none"}
    assert told == []


def test_one_of_several_alternatives_replaces_the_one_below():
    below = {"budget": {"steps": 4, "probe_steps": 2}}
    tree, told = laid(below, {"budget": {"seconds": 0.5}}, cls=StudyConfig)
    assert tree == {"budget": {"seconds": 0.5, "probe_steps": 2}}
    assert told == ["budget.seconds is given: dropped steps"]
    both = {"budget": {"steps": 4, "seconds": 0.5}}
    assert laid(below, both, cls=StudyConfig) == (
        {"budget": {"steps": 4, "seconds": 0.5, "probe_steps": 2}},
        [],
    ), "both in one layer are for the config to refuse"


def test_an_unknown_kind_is_left_for_the_config_to_refuse():
    below = {"objective": {"kind": "varkd", "gate": {"tau": 1.0}}}
    tree, told = laid(below, {"objective": {"kind": ["odd"]}})
    assert tree["objective"] == {"kind": ["odd"], "gate": {"tau": 1.0}}
    assert told == []


def test_former_names_of_any_layer_are_the_present_ones():
    tree, told = laid({"learner": {"max_staleness": 2}}, {"learner": {"max_lag": 1}})
    assert tree == {"learner": {"max_staleness": 1}}
    assert told == ["learner.max_lag is called max_staleness now; taken as that"]
    tree, _ = laid({"learner": {"max_lag": 2}}, {"learner": {"max_staleness": 1}})
    assert tree == {"learner": {"max_staleness": 1}}


def test_former_names_are_read_in_tables_that_are_called_by_their_kind():
    below = {"contexts": {"sources": {"teacher": {"min_prefix": 0.5, "per": "batch"}}}}
    above = {"contexts": {"coin": "sample", "sources": {"teacher": {"lo": 0.25}}}}
    tree, told = laid(below, above)
    source = {"min_prefix": 0.25, "prefix_per": "batch"}
    assert tree == {"contexts": {"sources": {"teacher": source}, "mix_per": "sample"}}
    assert len(told) == 3


def test_two_names_of_one_key_in_one_layer_are_refused():
    with pytest.raises(InputError, match=r"layer 1: learner\.max_lag and learner\.max_staleness"):
        laid({}, {"learner": {"max_lag": 1, "max_staleness": 1}})
    where = r"layer 0: contexts\.sources\.student\.lo and contexts\.sources\.student\.min_prefix"
    sources = {"student": {"lo": 0.0, "min_prefix": 0.0}}
    with pytest.raises(InputError, match=where):
        laid({"contexts": {"sources": sources}})


@pytest.mark.parametrize(("cls", "old"), RENAMED, ids=lambda v: getattr(v, "__module__", v))
def test_each_former_name_is_taken_and_said(cls, old, logged):
    new = cls.renamed[old]
    assert new in cls.model_fields, "the successor exists"
    assert old not in cls.model_fields
    value = cls.model_fields[new].default
    assert laid({old: value}, cls=cls) == (
        {new: value},
        [f"{old} is called {new} now; taken as that"],
    )
    required = {"sources": {"data": {}}} if "sources" in cls.model_fields else {}
    made = cls.model_validate({old: value, **required})  # in stored files and in Python
    assert getattr(made, new) == value
    assert f"{old} is called {new} now" in logged.getvalue()


def test_some_class_has_former_names():
    assert {old for _, old in RENAMED} >= {"max_lag", "lo", "coin", "clip", "snapshot_every"}


def test_a_preset_replaces_the_sizes_below_it_and_those_of_the_preset_below():
    sizes = {"preset": "XL", "width": 1280, "depth": 36, "heads": 20, "dropout": 0.1}
    student = {"models": {"student": {"kind": "llamagen", **sizes}}}
    tree, told = laid(student, {"models": {"student": {"preset": "B"}}})
    assert tree["models"]["student"] == {"kind": "llamagen", "preset": "B", "dropout": 0.1}
    assert told == []
    own = {"models": {"student": {"kind": "llamagen", "width": 48}}}
    tree, told = laid(own, {"models": {"student": {"preset": "B"}}})
    assert tree["models"]["student"] == {"kind": "llamagen", "preset": "B"}
    assert told == ["models.student.preset is B: dropped width"]


def test_a_size_above_a_preset_keeps_its_other_sizes_and_drops_its_name():
    preset = {"models": {"student": {"kind": "llamagen", "preset": "B"}}}
    tree, told = laid(preset, {"models": {"student": {"width": 1024}}})
    assert tree["models"]["student"] == {
        "kind": "llamagen",
        "width": 1024,
        "depth": 12,
        "heads": 12,
    }
    assert told[0].startswith("models.student.width is not that of preset B")
    assert laid(preset, {"models": {"student": {"width": 768}}})[1] == []


def test_another_kind_drops_the_preset_and_keeps_sizes_that_both_have():
    preset = {"kind": "llamagen", "preset": "B", "width": 768, "multiple_of": 256}
    tree, told = laid({"models": {"student": preset}}, {"models": {"student": {"kind": "var"}}})
    assert tree["models"]["student"] == {"kind": "var", "width": 768}
    assert told == ["models.student.kind is var instead of llamagen: dropped multiple_of, preset"]


def test_a_preset_of_an_objective_replaces_what_the_one_before_stood_for():
    """A run folder's config has the divergences written out beside the preset's name."""
    below = {"objective": {"kind": "varkd", "preset": "paper_eq", "student": {"name": "rkl"}}}
    tree, told = laid(below, {"objective": {"preset": "paper_text"}})
    assert tree["objective"] == {"kind": "varkd", "preset": "paper_text"}
    assert told == ["objective.preset is paper_text: dropped student"]


def test_parts_of_a_run_in_a_study_follow_the_same_rule():
    below = {"methods": {"a": {"objective": {"kind": "varkd", "gate": {}}, "like": "b"}}}
    above = {"methods": {"a": {"objective": {"kind": "gkd"}, "learner": {"max_lag": 1}}}}
    tree, told = laid(below, above, cls=StudyConfig)
    assert tree["methods"]["a"] == {
        "objective": {"kind": "gkd"},
        "like": "b",
        "learner": {"max_staleness": 1},
    }
    assert len(told) == 2
    tree, told = laid({"set": {"learner": {"ranks": 2}}}, cls=StudyConfig)
    assert tree == {"set": {"learner": {"world_size": 2}}}
