"""TFX's Trainer that also knows the raw examples."""
