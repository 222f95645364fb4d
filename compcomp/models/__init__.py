"""Run a sequence on a whole model: find its layers, calibrate, apply, measure, save.

Importing this package loads nothing. Its modules load torch, and none loads transformers.
"""
