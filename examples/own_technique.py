"""A technique of one's own, encoding and kernel: one bit a weight, the mean magnitude of a row [rastegari2016]."""

from dataclasses import dataclass, replace

from compcomp.language.technique import Declared, Technique
from compcomp.layers.state import Grid, LayerState
from compcomp.terms import Abs, Div, If, Sum, each


@dataclass(frozen=True)
class Binarize(Technique):
    """Replace every weight by a or -a, a = mean |w| over its row; 0 counts as positive."""

    declared = Declared(keeps=frozenset({"factors"}))

    def encode(self, layer: LayerState) -> LayerState:
        size = layer.weight.copy()
        for row in size:
            row[:] = Div(Sum(map(Abs, row)), len(row))
        weight = each(lambda w, a: If(w < 0, -a, a), layer.weight, size)
        return replace(layer, weight=weight, format=replace(layer.format, grid=Grid(size, 1, len(size)), rank=None))


def kernel(technique: Technique, layer: LayerState) -> LayerState:
    size = layer.weight.abs().mean(dim=1, keepdim=True).expand(layer.weight.shape)
    weight = size.where(layer.weight >= 0, -size)
    return replace(layer, weight=weight, format=replace(layer.format, grid=Grid(size, 1, len(size)), rank=None))


if __name__ == "__main__":
    import compcomp as cc
    from compcomp.techniques import Magnitude
    from compcomp.testing import check_encoding

    Technique.register(Binarize)  # its kernel is the function of that name in its module
    print(check_encoding(Binarize))
    print(cc.prove(cc.keeps(Binarize() >> Magnitude("1/2"), "grid")))
    print(cc.prove(cc.keeps(Magnitude("1/2") >> Binarize(), "mask")))
