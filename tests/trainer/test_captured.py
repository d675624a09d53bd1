"""What is saved with signatures: what they capture, and nothing else."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from trainer.captured import captured, save


@pytest.fixture
def holder(tmp_path):
    """A variable, a table from a file and a function that are used, and of each one that is not."""
    module = tf.Module()
    module.used, module.unused = tf.Variable([1.0, 2.0]), tf.Variable([3.0])
    names = tmp_path / "names.txt"
    names.write_text("a\nb\n")
    key, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
    lines = tf.lookup.TextFileInitializer(str(names), tf.string, key, tf.int64, number)
    module.deeper = {"table": tf.lookup.StaticHashTable(lines, -1), "unused": tf.lookup.StaticHashTable(lines, -2)}
    module.other = tf.function(lambda x: x * module.unused, [tf.TensorSpec([], tf.float32)])
    return module


def signature(holder):
    def scaled(names):
        return {"y": tf.gather(holder.used, tf.maximum(holder.deeper["table"].lookup(names), 0))}

    return tf.function(scaled, [tf.TensorSpec([None], tf.string, "names")]).get_concrete_function()


def test_what_functions_use_is_found_at_any_depth_and_nothing_else(holder):
    found = captured([holder], [signature(holder)])
    assert {id(part) for part in found} == {id(holder.used), id(holder.deeper["table"])}


def test_the_saved_model_answers_alike_without_what_no_signature_uses(holder, tmp_path):
    function = signature(holder)
    save(holder, {"serving_default": function}, str(tmp_path / "slim"))
    tf.saved_model.save(holder, str(tmp_path / "whole"), signatures={"serving_default": function})
    (tmp_path / "names.txt").unlink()  # it is a copy that is read
    slim, whole = (tf.saved_model.load(str(tmp_path / name)) for name in ("slim", "whole"))
    names = tf.constant(["b", "c", "a"])
    for loaded in (slim, whole):
        np.testing.assert_array_equal(loaded.signatures["serving_default"](names)["y"], [2.0, 1.0, 1.0])
    graphs = {
        name: saved_model_pb2.SavedModel.FromString((tmp_path / name / "saved_model.pb").read_bytes()).meta_graphs[0]
        for name in ("slim", "whole")
    }
    functions = {name: {f.signature.name for f in g.graph_def.library.function} for name, g in graphs.items()}
    assert any("lambda" in name for name in functions["whole"])
    assert not any("lambda" in name for name in functions["slim"])
    assert len(tf.train.list_variables(f"{tmp_path}/slim/variables/variables")) < len(
        tf.train.list_variables(f"{tmp_path}/whole/variables/variables")
    )


def test_what_nobody_holds_is_refused_when_it_is_saved(holder, tmp_path):
    with pytest.raises(AssertionError, match="untracked"):
        save(tf.Module(), {"serving_default": signature(holder)}, str(tmp_path / "model"))
