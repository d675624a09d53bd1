"""ContractSchema: the schema derived from the contract, as an artifact."""
