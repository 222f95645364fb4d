"""What each technique does to torch tensors: one technique a file, named like its encoding.

A kernel is ``kernel(technique, layer) -> LayerState``. The layer's fields hold tensors of any float dtype, on
the CPU or a CUDA device: ``weight`` and ``reference`` (out x in), ``gram`` (in x in), ``Format.mask`` (bool),
``Grid.step`` and ``Grid.offset`` (shape of the weight, possibly
expanded views), ``Factors``. A kernel changes none in place.
"""
