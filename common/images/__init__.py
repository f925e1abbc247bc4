"""Images as they come in: which files are data, what their pixels and labels mean."""
