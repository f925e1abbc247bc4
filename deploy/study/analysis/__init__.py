"""From measurements to intervals, tables and verdicts."""
