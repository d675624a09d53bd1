"""ExampleValidator that stops the run when it finds an anomaly."""
