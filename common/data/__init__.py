"""Token datasets: images of a split as codes, encoded here or published."""
