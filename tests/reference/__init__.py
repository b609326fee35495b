"""Plain float64 NumPy transcriptions of the papers' boxes: the oracles of the tests.

They share no code with the package: formulas in, arrays out, one matrix at a time.
"""
