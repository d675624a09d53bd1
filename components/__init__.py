"""TFX components and Beam executors; dataset importers."""
