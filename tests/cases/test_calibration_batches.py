"""Calibration batches that cannot be used: one line that names the batch; errors of the model get its number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import compcomp as cc
from compcomp.errors import InputError
from compcomp.models.calibrate import calibrate
from compcomp.models.layers import find_layers
from compcomp.techniques import PruneHeads, Wanda
from tests.models.fakes import Tiny

IDS = torch.randint(0, 32, (4, 8), generator=torch.Generator().manual_seed(1))
ROWS: Any = [{"input_ids": row, "attention_mask": [1] * 8} for row in IDS.tolist()]


def model(kind: str = "Llama") -> Any:
    import transformers

    sizes: dict[str, Any] = {"vocab_size": 32}
    if kind == "GPT2LMHead":
        sizes |= {"n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    elif kind == "OPT":
        sizes |= {"hidden_size": 16, "ffn_dim": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        sizes |= {"word_embed_proj_dim": 16, "max_position_embeddings": 16}
    else:
        sizes |= {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    found = getattr(
        transformers,
        f"{kind}{'' if kind.endswith('Head') else 'ForCausal'}{'Model' if kind.endswith('Head') else 'LM'}",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return found(found.config_class(**sizes)).eval()


def dataset(**columns: Any) -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "rows of lists": (lambda: ROWS, r"a batch with input_ids that is a list \(batch 1\); allowed: tensors"),
    "a dataset of lists": (
        lambda: dataset(input_ids=IDS.tolist()),
        r"a batch with input_ids that is a list \(batch 1\)",
    ),
    "a loader over rows of lists": (
        lambda: DataLoader(ROWS, batch_size=2),
        r"a batch with input_ids that is a list \(batch 1\)",
    ),
    "lists of lists": (lambda: [{"input_ids": IDS.tolist()}], r"a batch with input_ids that is a list \(batch 1\)"),
    "a list of numbers": (lambda: [[1, 2, 3]], r"a batch that is a list without tensors \(batch 1\)"),
    "single rows as tensors": (
        lambda: [{"input_ids": row} for row in IDS],
        r"a batch with input_ids of one dimension \(8\) \(batch 1\)",
    ),
    "single rows with masks": (
        lambda: [{"input_ids": row, "attention_mask": torch.ones(8)} for row in IDS],
        r"a batch with input_ids of one dimension \(8\) \(batch 1\); allowed: batch x length",
    ),
    "rows of a tensor": (lambda: list(IDS), r"a batch with tokens of one dimension \(8\) \(batch 1\)"),
    "ids beyond the vocabulary": (
        lambda: [IDS, IDS + 9],
        r"index \d+ for model\.embed_tokens \(batch 2\); allowed: 0 to 31",
    ),
    "negative ids": (lambda: [{"input_ids": IDS - 32}], r"index -\d+ for model\.embed_tokens \(batch 1\)"),
    "ids that are not whole": (lambda: [{"input_ids": IDS.float()}], r"input_ids that are float32 \(batch 1\)"),
    "a float tensor": (lambda: [IDS.float()], r"tokens that are float32 for model\.embed_tokens \(batch 1\)"),
    "an empty batch": (lambda: [IDS, IDS[:0]], r"an empty batch \(tokens of shape 0x8\) \(batch 2\)"),
    "no tokens": (lambda: [{"input_ids": IDS[:, :0]}], r"an empty batch \(input_ids of shape 4x0\) \(batch 1\)"),
    "nothing that counts": (
        lambda: [{"input_ids": IDS}, {"input_ids": IDS, "attention_mask": torch.zeros_like(IDS)}],
        r"no token that counts: attention_mask leaves all of them out \(batch 2\)",
    ),
    "texts": (lambda: ["hello"], r"a batch that is a str \(batch 1\)"),
    "a dict of texts": (lambda: [{"text": "hello"}], r"a batch with text that is a str \(batch 1\)"),
    "numbers": (lambda: [IDS, 5], r"a batch that is a int \(batch 2\)"),
    "nothing": (lambda: [IDS, None], r"a batch that is a NoneType \(batch 2\)"),
    "no batch": (lambda: [], "no batch"),
    "a used generator": (
        lambda: (g := (b for b in [IDS]), list(g))[0],
        r"no batch; allowed: at least one \(a generator",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_batch_that_cannot_be_used_is_named_in_one_line(name: str) -> None:
    make, message = WRONG[name]
    subject = model()
    before = {key: value.clone() for key, value in subject.state_dict().items()}
    with pytest.raises(InputError, match=f"^calibration: {message}") as caught:
        cc.apply(Wanda(sparsity="1/2"), subject, calibration=make())
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in subject.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in subject.modules())


@pytest.mark.parametrize("kind", ["GPT2LMHead", "OPT"])
def test_more_tokens_than_positions(kind: str) -> None:
    ids = torch.ones(2, 20, dtype=torch.long)
    with pytest.raises(InputError, match=r"^calibration: .*\(batch 1\); allowed: (0 to 15|at most 16)"):
        cc.apply(Wanda(sparsity="1/2"), model(kind), calibration=[ids])


def test_a_technique_for_the_whole_model_says_the_same() -> None:
    with pytest.raises(InputError, match=r"^calibration: a batch with input_ids that is a list \(batch 1\)"):
        cc.apply(PruneHeads(sparsity="1/2", score="activation"), model(), calibration=ROWS)


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(4, 4), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 3:
            raise RuntimeError("its own affair")
        found: Tensor = self.layer(x)
        return found


def test_an_error_of_the_model_tells_which_batch_it_was() -> None:
    subject = Failing()
    with pytest.raises(RuntimeError, match="its own affair") as caught:
        calibrate(subject, find_layers(subject), [torch.ones(2, 4)] * 4)
    assert caught.value.__notes__ == ["calibration: batch 3"]


def test_what_a_model_of_ones_own_takes_is_taken() -> None:
    """One row of tokens, or one vector: such models ask for no batch."""
    tiny = Tiny()
    rows = calibrate(tiny, find_layers(tiny), list(IDS % 16))
    together = calibrate(tiny, find_layers(tiny), IDS % 16)
    for name in rows:
        torch.testing.assert_close(rows[name], together[name])
    line = nn.Sequential(nn.Linear(3, 2))
    assert calibrate(line, find_layers(line), [torch.ones(3)])["0"].sum() == 9


def test_a_loader_that_shuffles_gives_every_step_the_same_batches() -> None:
    """Batches are drawn once for a search, also where a technique keeps them."""
    drawn: list[int] = []

    class Counting(TensorDataset):
        def __getitem__(self, place: int) -> Any:
            drawn.append(place)
            return super().__getitem__(place)

    loader = DataLoader(Counting(IDS % 16), batch_size=2, shuffle=True)
    cc.optimize_order(
        [Wanda(sparsity="1/2"), cc.parse_sequence("AbsMax(bits=4)").techniques[0]], model=Tiny(), calibration=loader
    )
    assert sorted(drawn) == [0, 1, 2, 3]
