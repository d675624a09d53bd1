"""What a run did, read from its records and written as one page."""
