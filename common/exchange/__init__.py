"""What roles exchange while a run goes on: records, leases, weights, numbers."""
