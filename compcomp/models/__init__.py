"""How a sequence runs on a whole model: find its layers, calibrate, apply, measure, save.

Importing this package loads nothing; its modules load torch, and none loads transformers.
"""
