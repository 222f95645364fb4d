"""Define the kinds of claims: one class each, with its fields, text and meaning.

A new kind is one class here and one rule that proves it.
"""
