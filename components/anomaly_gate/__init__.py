"""AnomalyGate: stops the run on what ExampleValidator found."""
