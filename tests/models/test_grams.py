from __future__ import annotations

import torch

from compcomp.models.grams import CHUNK, PANEL, Grams, gram
from tests.models.fakes import seeded


def inputs(count: int, width: int = 3) -> list[torch.Tensor]:
    source = seeded()
    return [torch.randn(2, 4, width, generator=source) for _ in range(count)]


def expected(*tensors: torch.Tensor) -> torch.Tensor:
    rows = torch.cat([t.reshape(-1, t.shape[-1]) for t in tensors]).double()
    return rows.T @ rows


def test_a_gram_matrix_is_added_up_in_float64_over_chunks() -> None:
    rows = torch.randn(CHUNK + 7, 3, generator=seeded()).to(torch.bfloat16)
    assert gram(rows).dtype == torch.float64
    torch.testing.assert_close(gram(rows), expected(rows))


def test_layers_that_read_the_same_tensors_share_one_matrix() -> None:
    grams, (x, y) = Grams(), inputs(2)
    for batch in (x, y):
        for layer in "qkv":
            grams.add(layer, batch)
        grams.add("o", batch.clone())
        grams.end_batch()
    result = grams.result()
    assert result["q"] is result["k"] is result["v"] and result["o"] is not result["q"]
    for layer in "qkvo":
        torch.testing.assert_close(result[layer], expected(x, y))
        assert torch.equal(result[layer], result[layer].T)


def test_layers_that_differ_later_part() -> None:
    grams, (x, y, z) = Grams(), inputs(3)
    for layer in "abc":
        grams.add(layer, x)
    grams.end_batch()
    grams.add("a", y)
    grams.add("b", y)
    grams.add("c", z)
    grams.end_batch()
    grams.add("a", z)  # b does not run, c sees z twice
    grams.add("c", z)
    grams.add("c", z)
    grams.end_batch()
    result = grams.result()
    torch.testing.assert_close(result["a"], expected(x, y, z))
    torch.testing.assert_close(result["b"], expected(x, y))
    torch.testing.assert_close(result["c"], expected(x, z, z, z))


def test_a_layer_called_twice_shares_only_what_is_alike() -> None:
    grams, (x, y) = Grams(), inputs(2)
    for _ in range(2):
        grams.add("a", x)
        grams.add("b", x)
        grams.add("a", y)
        grams.end_batch()
    result = grams.result()
    torch.testing.assert_close(result["a"], expected(x, y, x, y))
    torch.testing.assert_close(result["b"], expected(x, x))


def test_a_layer_that_first_runs_late_starts_from_there() -> None:
    grams, (x, y) = Grams(), inputs(2)
    grams.add("a", x)
    grams.end_batch()
    grams.add("a", y)
    grams.add("expert", y)
    grams.end_batch()
    grams.add("a", x)
    grams.add("expert", x)
    grams.end_batch()
    result = grams.result()
    torch.testing.assert_close(result["a"], expected(x, y, x))
    torch.testing.assert_close(result["expert"], expected(y, x))


def test_random_patterns_of_calls_add_up_right() -> None:
    source = seeded(5)
    for _ in range(30):
        grams, seen = Grams(), {name: list[torch.Tensor]() for name in "abcd"}
        for _ in range(4):
            tensors = [torch.randn(3, 2, generator=source) for _ in range(3)]
            for call in torch.randint(0, 12, (8,), generator=source).tolist():
                name, tensor = "abcd"[call % 4], tensors[call // 4]
                grams.add(name, tensor)
                seen[name].append(tensor)
            grams.end_batch()
        result = grams.result()
        assert result.keys() == {name for name, tensors in seen.items() if tensors}
        for name, total in result.items():
            torch.testing.assert_close(total, expected(*seen[name]))


def test_a_tensor_written_to_in_between_is_another_one() -> None:
    grams, (x,) = Grams(), inputs(1)
    before = x.clone()
    grams.add("a", x)
    x.mul_(2)
    grams.add("b", x)
    grams.end_batch()
    torch.testing.assert_close(grams.result()["a"], expected(before))
    torch.testing.assert_close(grams.result()["b"], expected(2 * before))


def test_inference_tensors_are_never_taken_for_one_another() -> None:
    grams = Grams()
    with torch.inference_mode():
        x = torch.ones(2, 3)
        grams.add("a", x)
        x.mul_(2)
        grams.add("b", x)
        grams.end_batch()
    torch.testing.assert_close(grams.result()["a"], expected(torch.ones(2, 3)))
    torch.testing.assert_close(grams.result()["b"], expected(2 * torch.ones(2, 3)))


def test_padding_is_left_out() -> None:
    grams, (x,) = Grams(), inputs(1)
    kept = torch.tensor([[True, True, False, False], [True, True, True, True]])
    grams.add("a", x, kept)
    grams.end_batch()
    torch.testing.assert_close(grams.result()["a"], expected(x[kept]))


def test_panels_make_a_symmetric_matrix() -> None:
    for width in (PANEL - 1, PANEL, 2 * PANEL + 5):
        rows = torch.randn(40, width, generator=torch.Generator().manual_seed(width))
        found = gram(rows)
        torch.testing.assert_close(found, rows.double().T @ rows.double(), rtol=1e-12, atol=1e-12)
        assert torch.equal(found[:PANEL, PANEL:].T, found[PANEL:, :PANEL])
