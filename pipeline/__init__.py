"""Which steps in what order with what gates: configuration, graphs, runners, command line."""
