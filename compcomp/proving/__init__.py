"""Turn a claim into a verdict: refute, lift, reduce, solve, replay."""
