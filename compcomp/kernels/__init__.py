"""Kernels: the torch functions that apply techniques, one technique a file, named like its encoding.

A kernel is ``kernel(technique, layer) -> LayerState``. The layer's fields hold tensors of any float dtype, on the CPU
or a CUDA device. ``weight`` and ``reference`` are out x in, ``gram`` is in x in, and ``Format.mask`` is a bool tensor.
``Grid.step`` and ``Grid.offset`` have the shape of the weight and may be expanded views. A kernel changes no tensor of
the layer in place.
"""
