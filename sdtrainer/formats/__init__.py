"""Names inside files: what other programs call the tensors that we train, and how files are written.

Pure naming and writing: knows no run and no live model.
"""
