"""Scores to decisions to numbers: NumPy in, plain values out; no PyTorch and no Ray."""
