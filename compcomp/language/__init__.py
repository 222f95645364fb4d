"""What can be said: techniques, sequences, layers, losses, claims, scopes, verdicts."""
