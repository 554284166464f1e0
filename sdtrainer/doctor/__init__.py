"""Looks for what would spoil a training: in the pictures, in their captions, and in the set as a whole."""
