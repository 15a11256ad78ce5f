"""From data to a published version: prepare a base, read a job, train, publish."""
