"""Scores to decisions to numbers: NumPy in, plain values out; no PyTorch and no Ray.

Arrays are (N, L): N samples, L labels. Scores are floats in [0, 1]; targets are 1, 0 and -1 for unknown; decisions are
booleans. An unknown target counts nowhere.
"""
