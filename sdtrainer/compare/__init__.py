"""Compare: all methods taught the starter's robot alike, measured, and common claims decided from it.

`course.run` does it; `numbers` and `claims` are the pure part, `report` and `sheet` what is written.
"""
