"""Whether a candidate can be served, before it is."""
