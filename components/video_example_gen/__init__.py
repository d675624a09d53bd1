"""VideoExampleGen: title, tags, categories and cover of every video, as tf.Examples."""
