"""Methods compared over seeds from one shared start: measurements, statistics and the page."""
