"""Read checkpoints as they lie on disk, layer by layer: one format a file, no model is loaded and no code is run."""
