"""A layer while techniques act on it: its state, groups of its weights, bases, number formats."""
