"""The study's self-contained HTML page."""
