"""Interactions to leak-free, split tf.Examples."""
