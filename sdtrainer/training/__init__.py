"""Training a run: set up, loop, guard, checkpoint, export. Everyone consumes the generator `run.train`."""
