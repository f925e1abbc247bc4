"""The networks and what they agree on: the backbone's contract, decoding plans, guidance."""
