"""Re-check what a saved verdict says from its files alone: no prover, and for certificates no solver."""
