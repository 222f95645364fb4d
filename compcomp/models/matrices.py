"""Find the matrices that a module multiplies its inputs with, among its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from compcomp.models.wrappers import is_from_transformers

Index = int | slice | None
"""The part of a parameter that is a matrix: one of its leading dimension, a range of its rows, or all of it."""

IN_OUT = ("Llama4TextExperts", "AriaGroupedExpertsGemm")
"""Classes of transformers whose experts are stored in x out, and which have no ``is_transposed`` to say so."""


@dataclass(frozen=True)
class Matrix:
    """A part of a parameter that is one matrix.

    Attributes:
        suffix: The end of its name, after that of the parameter: the number of an expert, "q", "k", "v", or nothing.
        index: Where it lies in the parameter.
    """

    suffix: str = ""
    index: Index = None


WHOLE = (Matrix(),)


@dataclass(frozen=True)
class Stored:
    """A parameter of a module that consists of matrices.

    Attributes:
        own: The parameter's name in the module.
        transposed: True if the matrices are stored in x out.
        matrices: The matrices.
        called: True if the module is called with the inputs of the matrix. False if its ``forward`` multiplies with it
            somewhere inside.
    """

    own: str
    transposed: bool = False
    matrices: tuple[Matrix, ...] = WHOLE
    called: bool = True


def is_linear(module: nn.Module) -> bool:
    """Return True for ``nn.Linear`` and transformers' ``Conv1D``."""
    return isinstance(module, nn.Linear) or is_from_transformers(module, "Conv1D")


def is_embedding(module: nn.Module) -> bool:
    """Return True for ``nn.Embedding`` and what is derived from it: a table of which a token's row is looked up."""
    return isinstance(module, nn.Embedding)


def stored_in(module: nn.Module) -> Iterator[Stored]:
    """Yield the parameters of a module that consist of matrices: of Linear layers, embeddings, attention and experts.

    Experts are the 3-dimensional parameters (experts x out x in) of a class with "Expert" in its name, or with an
    attribute ``is_transposed``. If that is true, they are experts x in x out.
    """
    if is_linear(module):
        yield Stored("weight", is_from_transformers(module, "Conv1D"))
    elif is_embedding(module):
        yield Stored("weight")
    elif isinstance(module, nn.MultiheadAttention):
        if module._parameters.get("in_proj_weight") is not None:
            rows = [(name, slice(k * module.embed_dim, (k + 1) * module.embed_dim)) for k, name in enumerate("qkv")]
            yield Stored("in_proj_weight", False, tuple(Matrix(name, part) for name, part in rows), called=False)
        else:
            for name in "qkv":
                yield Stored(f"{name}_proj_weight", called=False)
    elif (transposed := _in_out(module)) is not None:
        for own, parameter in module.named_parameters(recurse=False):
            if is_lazy(parameter):  # without a shape yet
                continue
            if parameter.ndim == 3:
                experts = tuple(Matrix(str(number), number) for number in range(len(parameter)))
                yield Stored(own, transposed, experts, called=False)


def _in_out(module: nn.Module) -> bool | None:
    """Return True if a module holds experts that are stored in x out, False for out x in, and None for no experts."""
    transposed = getattr(module, "is_transposed", None)
    if isinstance(transposed, bool):
        return transposed
    names = [kind.__name__ for kind in type(module).__mro__]
    if isinstance(module, nn.modules.conv._ConvNd) or not any("expert" in name.lower() for name in names):
        return None
    return any(is_from_transformers(module, name) for name in IN_OUT)


def part_of(parameter: Tensor, index: Index, transposed: bool) -> Tensor:
    """Return the matrix (out x in) at this place of a parameter, as a view of it."""
    part = parameter if index is None else parameter[index]
    return part.T if transposed else part
