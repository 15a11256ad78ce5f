"""Other forms of what was trained: merged, combined, quantised, exported."""
