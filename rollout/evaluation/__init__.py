"""Sample quality: feature extractors and torch-fidelity's metrics."""
