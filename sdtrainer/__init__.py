"""sdtrainer: teach Stable Diffusion a new subject or style on one ordinary card."""

__version__ = "0.1.0"
