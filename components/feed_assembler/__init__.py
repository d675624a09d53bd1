"""The feed in one SavedModel, of the models being served."""
