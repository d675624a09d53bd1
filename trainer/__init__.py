"""How models are built, trained and exported."""
