"""Write the tokenizer of a folder into a GGUF file, as the converter of llama.cpp does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compcomp.errors import InputError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5
"""Types of tokens in GGUF."""
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_BYTES = ("ByteLevel", True)
PRE = {
    (_BYTES,): "gpt-2",
    (("Digits", True), _BYTES): "smollm",
    (("Split", rf"{_LETTERS}|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"), ("ByteLevel", False)): "llama-bpe",
    (("Split", rf"{_LETTERS}|\p{{N}}|{_SIGNS}|{_SPACES}"), ("ByteLevel", False)): "qwen2",
}
"""The names that llama.cpp has for ways to cut text before merging, by the steps in tokenizer.json."""
FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
IDS = ("bos", "eos", "unk", "pad")


def write(to: Any, package: Any, folder: Path, size: int) -> None:
    """Write the tokens, merges, special tokens and chat template of a folder's tokenizer.

    The tokens at which generation begins and ends are those of generation_config.json or config.json, which
    transformers follows, before those of tokenizer_config.json. A folder without a tokenizer gives a file without one,
    which takes numbers of tokens alone.

    Args:
        to: gguf's ``GGUFWriter``.
        package: gguf.
        folder: the folder.
        size: the number of rows of the embedding. Tokens that the tokenizer lacks are written as unused.

    Raises:
        InputError: The tokenizer is of a kind that is not written.
    """
    if not any((folder / name).exists() for name in FILES):
        to.add_tokenizer_model("no_vocab")
        return
    about = _json(folder / "tokenizer.json")
    model, added = about.get("model") or {}, {token["id"]: token for token in about.get("added_tokens") or ()}
    pre = _pre(about)
    by_number = {number: text for text, number in (model.get("vocab") or {}).items()}
    by_number |= {number: token["content"] for number, token in added.items()}
    if by_number and max(by_number) >= size:
        raise InputError(f"a tokenizer with token {max(by_number)}", f"tokens below {size}, as embedded", "export")
    kinds = [
        (CONTROL if added[number].get("special") else USER_DEFINED)
        if number in added
        else (NORMAL if number in by_number else UNUSED)
        for number in range(size)
    ]
    to.add_tokenizer_model("gpt2")
    to.add_tokenizer_pre(pre)
    to.add_token_list([by_number.get(number, f"[PAD{number}]") for number in range(size)])
    to.add_token_types(kinds)
    special = package.SpecialVocab(folder, load_merges=True, n_vocab=size)
    special.special_token_ids |= _ids(folder, size)
    special.add_to_gguf(to, quiet=True)


def _pre(about: Mapping[str, Any]) -> str:
    """Return llama.cpp's name for how a tokenizer cuts text. Raises InputError if it has none that is known here."""
    model, where = about.get("model") or {}, "export"
    step = about.get("pre_tokenizer") or {}
    steps = step.get("pretokenizers", ()) if step.get("type") == "Sequence" else (step,)
    name = PRE.get(tuple(map(_known, steps)))
    if model.get("type") != "BPE" or name is None:
        kinds = " and ".join(str(step.get("type")) for step in steps)
        given = f"a tokenizer of the type {model.get('type')} that cuts text by {kinds}"
        raise InputError(given, f"byte-level BPE that cuts text as {', '.join(PRE.values())} of llama.cpp", where)
    if bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        raise InputError(f"a tokenizer like {name} with another ignore_merges", "what llama.cpp takes for it", where)
    normal = about.get("normalizer") or {}
    others = normal.get("normalizers", ()) if normal.get("type") == "Sequence" else (normal,) if normal else ()
    if any(step.get("type") != "NFC" for step in others):
        raise InputError(f"a tokenizer with the normalizer {normal.get('type')}", "none, or NFC", where)
    return name


def _known(step: Mapping[str, Any]) -> tuple[str, Any]:
    """Return a step of a pre-tokenizer as a key of :data:`PRE` has it."""
    kind = str(step.get("type"))
    if kind == "ByteLevel":
        return kind, None if step.get("add_prefix_space") else bool(step.get("use_regex", True))
    if kind == "Digits":
        return kind, bool(step.get("individual_digits"))
    if kind == "Split" and step.get("behavior") == "Isolated" and not step.get("invert"):
        return kind, (step.get("pattern") or {}).get("Regex")
    return kind, None


def _ids(folder: Path, size: int) -> dict[str, int]:
    """Return the numbers of special tokens in generation_config.json, or else in config.json."""
    found = {}
    for name in ("config.json", "generation_config.json"):
        given = _json(folder / name) if (folder / name).is_file() else {}
        for kind in IDS:
            number = given.get(f"{kind}_token_id")
            number = number[0] if isinstance(number, list) and number else number
            if isinstance(number, int) and 0 <= number < size:
                found[kind] = number
    return found


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} ({str(error)[:80]})", "a tokenizer in tokenizer.json", "export") from None
    return found if isinstance(found, dict) else {}
