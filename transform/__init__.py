"""What the data is: the contract, the schema derived from it, and the one preprocessing graph."""
