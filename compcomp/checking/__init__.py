"""Re-check a saved verdict from its files alone: without the prover, and for certificates without a solver."""
