"""Measuring: the trainer's speed, what it holds against what was estimated, and what each setting costs."""
