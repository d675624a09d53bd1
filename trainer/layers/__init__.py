"""Keras layers, one idea a file."""
