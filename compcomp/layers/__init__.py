"""Define layers while techniques act on them: states, groups of weights, bases and number formats."""
