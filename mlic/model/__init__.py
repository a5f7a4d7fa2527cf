"""Pixels to logits: architectures, losses and the bundle that a run leaves behind."""
