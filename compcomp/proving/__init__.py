"""How a claim becomes a verdict: refute, lift, reduce, solve, replay."""
