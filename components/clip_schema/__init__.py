"""ClipSchema: the schema of clip examples, as an artifact."""
