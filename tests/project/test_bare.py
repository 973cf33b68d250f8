"""Training and sampling run where only torch, numpy, pyarrow, safetensors and pyyaml are installed.

A subprocess refuses every other import (what torch itself needs aside), then builds, trains and samples each recipe.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import importlib.abc, importlib.metadata, re, sys

allowed = {"torch", "numpy", "pyarrow", "safetensors", "pyyaml", "tokenloom"}
wanted = ["torch"]
while wanted:  # what torch itself requires is there wherever torch is
    for line in importlib.metadata.requires(wanted.pop()) or []:
        name = re.match(r"[A-Za-z0-9_.-]+", line)[0].lower().replace("-", "_")
        if "extra ==" not in line and name not in allowed:
            try:
                importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
            allowed.add(name)
            wanted.append(name)
normal = lambda name: name.lower().replace("-", "_")
refused = {m for m, found in importlib.metadata.packages_distributions().items() if not allowed & set(map(normal, found))}

finders = list(sys.meta_path)

class Bare(importlib.abc.MetaPathFinder):
    # what is refused is not found, as if it were not installed
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] not in refused:
            for finder in finders:
                if spec := finder.find_spec(name, path, target):
                    return spec
        return None

sys.meta_path[:] = [Bare()]

import runpy
import torch
from tokenloom.models.core import signals
import tokenloom.models, tokenloom.tasks.training.train_loop, tokenloom.tasks.data.loader, tokenloom.tasks.data.tokens
runpy.run_module("tokenloom.models", run_name="__main__")

from tokenloom.models.core import registry
from tokenloom.models.core import signals
from tokenloom.models.core.build import ModelSpec
from tokenloom.models.core.draws import Draws, SampleDraws
from tokenloom.models.parts.nets.classifier import Classifier, Protocol, shape_of
from tokenloom.models.core.protocols import Batch, Labels, Tokens

def codec(name):
    recipe, given = registry.get(name), {"signal": signals.image(16, 1).to_dict()}
    needs = recipe.config(recipe.tiny).needs
    if "tokenizer" in needs:
        given["tokenizer"] = codec(recipe.codec).to_dict()
    if "features" in needs:
        given["features"] = shape_of(1, 3, Protocol(width=4, features=8))
    return ModelSpec("tokenizer", name, dict(recipe.tiny), {}, given)

def stand(model, spec):
    # hand over, untrained, what the model depends on
    given, stands = spec.given, {}
    if given.get("tokenizer"):
        stands["tokenizer"] = ModelSpec.from_dict(given["tokenizer"]).build()
    if given.get("features"):
        stands["features"] = Classifier.of(given["features"])
    if stands:
        model.adopt(**stands)

for name in registry.names():
    recipe = registry.get(name)
    if recipe.kind == "density":
        spec = ModelSpec("density", name, dict(recipe.tiny), {}, {"signal": signals.image(16, 1).to_dict()})
    else:
        spec = codec(name if recipe.kind == "tokenizer" else recipe.codec)
    model = spec.build()
    stand(model, spec)
    batch = Batch(signal=torch.rand(4, 1, 16, 16), conditions=Labels(torch.arange(4) % 3))
    if recipe.kind == "generator":
        given = {"layout": model.layout.to_dict(), "classes": 3, "tokenizer": spec.to_dict()}
        tokens = model.eval().encode(batch.signal)
        model = ModelSpec("generator", name, dict(recipe.tiny), {}, given).build()
        batch = Batch(tokens=tokens, conditions=batch.conditions)
    model.train()
    for phase in model.phases:
        if not model.phase_parameters(phase):
            continue  # a codec that is not learned
        optimizer = torch.optim.AdamW([p for _, p in model.phase_parameters(phase)])
        model.losses(batch, phase, Draws.whole(0, 0, 4))["loss"].backward()
        optimizer.step()
    model.eval()
    if recipe.kind == "generator":
        print(name, tuple(model.generate(batch.conditions, model.sampler, SampleDraws.of(0, 0, 4)).data.shape))
    elif recipe.kind == "density":
        print(name, tuple(model.sample(batch.conditions, SampleDraws.of(0, 0, 4)).shape))
    else:
        print(name, tuple(model.decode(model.encode(batch.signal)).shape))
print("bare: done")
"""


def test_every_recipe_trains_and_samples_in_a_bare_environment() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.rstrip().endswith("bare: done")
