"""Buckets are read and written, and what did so ends as it should."""

import subprocess
import sys
from pathlib import Path

import pytest

from components.importers.demo import import_demo

ROOT = Path(__file__).parents[2]
COPY = """
import sys
import tensorflow as tf
from transform import file_systems

file_systems.register()
text = tf.io.gfile.GFile("s3://shortlist/folder/given").read()
with tf.io.gfile.GFile("s3://shortlist/folder/copy", "w") as file:
    file.write(text)
print(tf.io.gfile.listdir("s3://shortlist/folder"))
sys.exit({code})
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_process_that_used_a_bucket_ends_with_its_own_exit_code(bucket, code):
    """Without what `register` does of it, tensorflow-io aborts: exit code -6."""
    bucket.put_object(Key="folder/given", Body=b"what is there")
    command = [sys.executable, "-c", COPY.format(code=code)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "['copy', 'given']\n")
    assert bucket.Object("folder/copy").get()["Body"].read() == b"what is there"


def test_a_world_in_a_bucket_is_checked(bucket, tmp_path):
    import_demo(None, str(tmp_path), users=20, videos=20, interactions=500, seed=1)
    for path in filter(Path.is_file, tmp_path.rglob("*")):
        bucket.upload_file(str(path), f"world/{path.relative_to(tmp_path)}")
    command = [sys.executable, "-c", "from pipeline.cli import main; main()", "check"]
    here, there = (
        subprocess.run([*command, world], cwd=ROOT, capture_output=True, text=True, check=False)
        for world in (str(tmp_path), "s3://shortlist/world")
    )
    assert (here.returncode, there.returncode) == (0, 0), there.stderr
    assert there.stdout == here.stdout
    assert "nothing rejected" in there.stdout
