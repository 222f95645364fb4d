"""Provide encodings with optima of linear algebra, cuts and open outcomes, in every reading of terms."""
