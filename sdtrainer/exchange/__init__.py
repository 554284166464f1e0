"""Sets of pictures in and out: folders, archives and configs as other trainers keep them.

A set is read into `Piece`s (pieces.py) by one of the readers, and written from them by one of the writers.
Originals are only read.
"""
