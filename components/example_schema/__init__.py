"""ExampleSchema: the schema of a stream's examples, as an artifact."""
