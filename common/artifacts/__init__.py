"""Models on disk, ours and official ones."""
