"""Clips to split tf.Examples of frames, sound and text, and to candidates for the cover."""
