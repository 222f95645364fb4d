"""Measure what the weights of a checkpoint are, layer by layer, and compare it with what was claimed or expected."""
