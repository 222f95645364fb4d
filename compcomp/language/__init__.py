"""Define techniques, sequences, losses, claims, scopes and verdicts, with their text and JSON forms."""
