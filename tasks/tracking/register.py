"""Step ``register``: a version in the model registry, with a card, lineage and the aliases ``challenger`` and ``champion``.

A version is tagged with the step's fingerprint, so a re-run makes no second one; when the tracking database is lost,
``register`` fills it again from the records: runs, curves, pictures, versions and aliases.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenloom.configs.schema import ClusterConfig, EvaluateConfig, RegisterConfig, SampleConfig, identity
from tokenloom.models.core.config import ConfigError
from tokenloom.models.core.protocols import LayoutError
from tokenloom.tasks import modalities
from tokenloom.tasks.evaluation import gate
from tokenloom.tasks.runtime.errors import ArtifactError, StepError
from tokenloom.tasks.runtime.progress import Report, silent
from tokenloom.tasks.store.artifacts import Artifact, Outcome, Record, StepSpec, Store, Work
from tokenloom.tasks.store.lineage import differences, lineage_of

if TYPE_CHECKING:
    from tokenloom.tasks.tracking.registry import Registry, Version
    from tokenloom.tasks.tracking.tracker import Run, Tracker

VERSION = 1
TAG = "tokenloom.fingerprint"
CHALLENGER, CHAMPION = "challenger", "champion"


def plan_register(name: str, config: RegisterConfig, evaluation: Artifact, models: Mapping[str, Artifact]) -> StepSpec:
    """The step that registers evaluated models, by role: ``generator`` and ``tokenizer``, or ``density``.

    Raises:
        ConfigError: a floor or gate on a metric that does not exist.
    """
    gate.check_names(config.floor, config.gate)
    settings = {**identity(config), "name": config.name or name}
    return StepSpec(
        "register",
        VERSION,
        "registration",
        name,
        settings,
        {"evaluation": evaluation, **models},
    )


def register(step: StepSpec, store: Store, tracker: Tracker, report: Report = silent) -> Outcome:
    """Register a planned model, or find that it is; a registry that has lost it is filled again.

    Raises:
        StepError: the tracking server is away (everything else is in the store), or a metric of the gate is missing.
    """
    outcome = store.execute(step, lambda work: _body(step, store, tracker, report, work))
    if outcome.status == "cached" and lost(store, outcome.artifact, tracker.uri):
        refill(store, outcome.artifact, tracker, report)
        return Outcome(outcome.artifact, "ran", outcome.seconds, outcome.metrics)
    return outcome


def _body(step: StepSpec, store: Store, tracker: Tracker, report: Report, work: Work) -> dict[str, Any]:
    from tokenloom.tasks.tracking.registry import Registry

    tracker.sync()
    registry, name = Registry(tracker), step.config["name"]
    registry.check()  # before anything is made
    evaluation = store.record(step.inputs["evaluation"])
    card = _card(step, store, evaluation)
    report("register", 0, 3, {})
    with tracker.track(step, work.uri) as run:
        version = _version(step, store, registry, run, card)
        report("register", 1, 3, {})
        with store.lease(f"champion-{name}"):
            decision = _decide(step, store, registry, evaluation, report)
            _point(registry, version, decision)
        report("register", 2, 3, {})
        run.tag({"tokenloom.version": version.uri, "tokenloom.decision": decision.reason})
    facts = {
        "name": name,
        "version": int(version.number),
        "uri": version.uri,
        "aliases": [CHALLENGER, CHAMPION] if decision.promoted else [CHALLENGER],
        "promoted": decision.promoted,
        "reason": decision.reason,
    }
    work.put("README.md", card.encode())
    work.put("version.json", json.dumps(facts, indent=1, sort_keys=True).encode())
    report("register", 3, 3, {})
    return facts


def _card(step: StepSpec, store: Store, evaluation: Record) -> str:
    from tokenloom.tasks.tracking.model_card import model_card

    return model_card(
        step.config["name"],
        models={role: store.record(artifact) for role, artifact in _models(step.inputs).items()},
        dataset=store.record(evaluation.inputs["dataset"]),
        evaluation=evaluation,
        fingerprint=step.fingerprint,
    )


def _models(inputs: Mapping[str, Artifact]) -> dict[str, Artifact]:
    """The models among a step's inputs, by role; the one that is sampled first."""
    return {role: inputs[role] for role in ("generator", "density", "tokenizer", "draft") if role in inputs}


def _version(step: StepSpec, store: Store, registry: Registry, run: Run, card: str) -> Version:
    """The version of this fingerprint, made if there is none."""
    found = registry.find(step.config["name"], step.fingerprint)
    if found is not None:
        return found
    if run.id is None:
        raise StepError("the tracking server has gone away; everything else is in the store: run again when it is back")
    from tokenloom.tasks.serving import bundle
    from tokenloom.tasks.tracking.registry import Servable

    evaluation = store.record(step.inputs["evaluation"])
    with tempfile.TemporaryDirectory() as scratch:
        there = Path(scratch)
        sample = evaluation.config.get("sample", {})
        dataset = store.record(evaluation.inputs["dataset"])
        models = _models({**{role: a for role, a in evaluation.inputs.items() if role == "draft"}, **step.inputs})
        modality, classes = modalities.of(dataset.notes), evaluation.notes["classes"]
        pair = bundle.write_bundle(there / "bundle", store, models, classes, sample, modality.serving(dataset))
        served = modality.served(pair, dataset)
        (there / "bundle" / "README.md").write_text(card)
        samples = store.fetch(evaluation.artifact, "samples.png") / "samples.png"
        (there / "bundle" / "samples.png").write_bytes(samples.read_bytes())
        lineage = {role: artifact.id for role, artifact in {**evaluation.inputs, **step.inputs}.items()}
        servable = Servable(
            code=served.code,
            packages=bundle.write_code(there / "code", served.rooms),
            bundle=there / "bundle",
            inputs=dict(served.inputs),
            outputs=dict(served.outputs),
            params=dict(served.params),
            example=dict(served.example),
            requirements=bundle.requirements(served.packages),
            metadata={"fingerprint": step.fingerprint, "lineage": lineage},
        )
        tags = {TAG: step.fingerprint, **{f"tokenloom.{role}": artifact_id for role, artifact_id in lineage.items()}}
        numbers = {k: v for k, v in evaluation.metrics.items() if isinstance(v, (int, float))}
        run.picture("samples", samples)
        (there / "README.md").write_text(card)
        run.file(there / "README.md", "card")
        return registry.register(step.config["name"], run.id, servable, card, tags, numbers)


def _decide(step: StepSpec, store: Store, registry: Registry, evaluation: Record, report: Report) -> gate.Decision:
    champion = registry.alias(step.config["name"], CHAMPION)
    if champion is None:
        return gate.floors(evaluation.metrics, step.config["floor"])
    if champion.tags.get(TAG) == step.fingerprint:
        return gate.Decision(True, "it is the champion already")
    try:
        theirs = _same_protocol(store, store.resolve(champion.tags.get("tokenloom.evaluation", "?"), "evaluation"), evaluation, report)
    except (ArtifactError, ConfigError, LayoutError) as error:
        return gate.Decision(False, f"the champion, version {champion.number}, cannot be judged under this protocol: {error}")
    return gate.against(evaluation.metrics, theirs.metrics, step.config["gate"])


def _same_protocol(store: Store, champion: Artifact, evaluation: Record, report: Report) -> Record:
    """The champion's evaluation under this evaluation's protocol, carried out now if the data or the protocol have changed."""
    theirs = store.record(champion)
    if not list(differences(theirs.notes["protocol"], evaluation.notes["protocol"])):
        return theirs
    from tokenloom.tasks.evaluation.evaluate import evaluate, plan_density_evaluation, plan_evaluate

    for what in {"dataset", "features"} & set(evaluation.inputs):
        store.record(evaluation.inputs[what])
    name = f"{theirs.artifact.name[:50]}.champion"  # not the run's own name, whose newest evaluation people mean
    data, protocol = (evaluation.inputs["dataset"], evaluation.inputs.get("features")), EvaluateConfig(**evaluation.config["evaluate"])
    models = theirs.inputs
    if "density" in models:
        again = plan_density_evaluation(name, models["density"], *data, protocol)
    else:
        sample = SampleConfig(**theirs.config["sample"])
        again = plan_evaluate(name, models["generator"], models["tokenizer"], *data, sample, protocol, store, models.get("draft"))
    return store.record(evaluate(again, store, ClusterConfig(), None, report).artifact)


def _point(registry: Registry, version: Version, decision: gate.Decision) -> None:
    from tokenloom.tasks.tracking.registry import PROMOTED

    registry.set_alias(version, CHALLENGER)
    if decision.promoted:
        registry.set_alias(version, CHAMPION)
    tags = {"tokenloom.decision": decision.reason} | ({PROMOTED: "true"} if decision.promoted else {})
    registry.tag(version, tags)


# --- a tracking database that is lost -------------------------------------------------------------------------


def lost(store: Store, registration: Artifact, tracking_uri: str) -> bool:
    """Whether the registry does not have this registration's version (false when that cannot be seen now); MLflow is not loaded."""
    from tokenloom.tasks.tracking.registry import is_registered

    return is_registered(tracking_uri, store.record(registration).config["name"], registration.fingerprint) is False


def refill(store: Store, registration: Artifact, tracker: Tracker, report: Report = silent) -> None:
    """Put the runs and versions of a registered model back, oldest first, with the decisions that were made then."""
    from tokenloom.tasks.evaluation.evaluate import publish
    from tokenloom.tasks.tracking.registry import Registry

    tracker.sync()
    registry, name = Registry(tracker), store.record(registration).config["name"]
    registry.check()
    registrations = [r for r in store.records("registration") if r.config["name"] == name]
    for i, record in enumerate(registrations):
        report("register", i, len(registrations), {})
        try:
            ancestors = [store.record(a) for a in reversed(lineage_of(store, record.artifact)["ancestors"])]
            for each in ancestors:
                if tracker.run_id(each.artifact.fingerprint) is None:
                    if each.artifact.kind == "evaluation":
                        publish(store, each.artifact, tracker)
                    elif each.artifact.kind in ("tokenizer", "generator", "density"):
                        _retrace(store, each, tracker)
            step = step_of(record)
            with tracker.track(step, record.artifact.uri) as run:
                version = _version(step, store, registry, run, _card(step, store, store.record(step.inputs["evaluation"])))
                _point(registry, version, gate.Decision(record.metrics["promoted"], record.metrics["reason"]))
        except ArtifactError:
            if record.artifact == registration:
                raise  # an older version whose files are gone stays lost
    report("register", len(registrations), len(registrations), {})


def step_of(record: Record) -> StepSpec:
    """The step that made a record."""
    return StepSpec(record.step, record.version, record.artifact.kind, record.artifact.name, record.config, record.inputs, record.notes)


def _retrace(store: Store, record: Record, tracker: Tracker) -> None:
    """A training run's parameters, curves and pictures, from the store."""
    from tokenloom.tasks.training.curves import numbers, read_curves

    with tracker.track(step_of(record), record.artifact.uri) as run:
        for row in read_curves(store.storage, record.artifact.folder):
            run.log(numbers(row), row["step"])
        for path, _ in store.storage.list(f"{record.artifact.folder}/previews"):
            run.picture(Path(path).stem, store.storage.read(path))
