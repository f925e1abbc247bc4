"""Files that survive, and files of anybody read safely."""
