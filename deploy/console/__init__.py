"""What a person sees: progress, endings, stop requests, faults."""
