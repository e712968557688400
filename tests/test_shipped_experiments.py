"""What ships is true: files that read, records made with their settings, one repeated exactly."""

import dataclasses
import hashlib
import json

import pytest
import torch

from dfkd_lab.file import EXPERIMENTS, read_experiment
from dfkd_lab.records import RECORDS, check_record, environment, paper_table, read_records
from dfkd_lab.runner import Place, execute
from dfkd_lite import preset
from dfkd_lite.generator import ATTENTION_SOURCE
from dfkd_lite.settings import plain
from dfkd_lite.storage.shipped import SHIPPED
from dfkd_lite.storage.weights import load_network

# settings that older records do not have yet, and what their runs had
NEWER = {
    **{"precision": "float32", "compile": False, "reduction": 8, "growth": 1, "batch_norm": True},
    **{"blocks": None, "halving": False, "output": "sigmoid"},
}
MEASURED = [
    path.stem for path in sorted(EXPERIMENTS.glob("*.yaml")) if (RECORDS / path.stem).is_dir()
]


def test_there_is_a_cell_for_every_number_of_the_papers_tables():
    """Rows of Tables 2 to 4, and cells of Tables 5 and 6, by table, row and column."""
    wanted = set()
    for table, name in (
        ("table2", "benchmark"),
        ("table3", "high_resolution"),
        ("table4", "medical"),
    ):
        for row in paper_table(f"{table}_{name}"):
            wanted.add((f"{table}_{name}", row["dataset"], row["teacher"], row["student"]))
    for table, key in (("table5_ablation", "variant"), ("table6_lambda", "lambda")):
        rows = paper_table(table)
        wanted |= {(table, row[key], column) for row in rows for column in row if column != key}
    found = set()
    for experiment in ("table2", "table3", "table4", "table5", "table6"):
        for run in read_experiment(experiment):
            table, row = run.paper["table"], run.paper["row"]
            if table in ("table5_ablation", "table6_lambda"):
                found.add((table, *row.values(), run.paper["column"]))
            else:
                (full,) = [r for r in paper_table(table) if all(r[k] == v for k, v in row.items())]
                found.add((table, full["dataset"], full["teacher"], full["student"]))
                assert run.teacher == full["teacher"].lower()
                assert run.student == full["student"].lower()
                assert full.get("resolution") in (None, str(run.size))
    assert found == wanted


def completed(kept, ours):
    """A record's settings with those that are newer than it."""
    if not (isinstance(kept, dict) and isinstance(ours, dict)):
        return kept
    newer = {k: v for k, v in NEWER.items() if k in ours}
    return {k: completed(v, ours.get(k)) for k, v in (newer | kept).items()}


@pytest.mark.parametrize("experiment", MEASURED)
def test_records_have_the_settings_of_their_file(experiment):
    runs = {run.name: run for run in read_experiment(experiment)}
    for record in read_records(experiment):
        run = runs[record["name"]]
        assert record["seed"] == run.seed and record["data"]["name"] == run.data
        for part in ("teach", "distill", "method"):
            kept = record["settings"][part]
            ours = plain(getattr(run, part))
            assert completed(kept, ours) == ours, (record["name"], part)


def test_the_variant_source_is_the_generator_of_the_papers_source():
    found = {run.variant: run.method.generator for run in read_experiment("variants")}
    source = dataclasses.replace(ATTENTION_SOURCE, width=32)
    assert found["source"] == source
    assert found["source-none"] == dataclasses.replace(source, attention=None)
    module = dataclasses.replace(source.attention, lam=0.05)
    assert found["source-0.05"] == dataclasses.replace(source, attention=module)
    module = dataclasses.replace(source.attention, softmax="channel")
    assert found["source-channel"] == dataclasses.replace(source, attention=module)
    assert found["attention-module"].attention == source.attention
    assert found["source-none-repeated"] == found["source-none"]
    for run in [*read_experiment("table2"), *read_experiment("table6")]:
        ours = run.method.generator
        module = dataclasses.replace(ATTENTION_SOURCE.attention, lam=ours.attention.lam)
        assert ours == dataclasses.replace(ATTENTION_SOURCE, attention=module)


def test_parts_of_the_sources_generator_differ_in_what_their_names_say():
    """Chapter 4 compares them with the source's generator without module."""
    found = {run.variant: run.method for run in read_experiment("variants")}
    plain_source, lite = found["source-none"], found["lite"].generator
    changes = {
        "no-spectral": ["spectral_norm"],
        "batch-norm": ["batch_norm"],
        "other-norm": ["spectral_norm", "batch_norm"],
        "nearest": ["upsample"],
        "our-blocks": ["blocks"],
        "our-widths": ["halving"],
        "sigmoid": ["output"],
    }
    for name, parts in changes.items():
        taken = {part: getattr(lite, part) for part in parts}
        generator = dataclasses.replace(plain_source.generator, **taken)
        assert found[f"source-{name}"] == dataclasses.replace(plain_source, generator=generator)
    rate = plain_source.meta.lr * plain_source.meta.steps  # of the outer steps
    longer = dataclasses.replace(plain_source.meta, steps=20, outer_lr=rate)
    assert found["source-20-steps"] == dataclasses.replace(plain_source, meta=longer)
    longer = dataclasses.replace(plain_source.meta, steps=20, kind="none")
    assert found["source-20-plain-steps"] == dataclasses.replace(plain_source, meta=longer)
    four = dataclasses.replace(lite, attention=None, blocks=4)
    assert found["attention-none-four-blocks"].generator == four


def test_every_record_fits_the_schema_and_is_of_committed_code():
    for path in sorted(RECORDS.glob("*/*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        if path.parent.name in ("speed", "memory", "cost"):
            continue
        check_record(record)
        assert record["environment"]["code"]["commit"], path


@pytest.mark.parametrize(
    "path", sorted((SHIPPED / "teachers").glob("*.json")), ids=lambda p: p.stem
)
def test_cards_are_true_of_their_teachers(path):
    card, weights = json.loads(path.read_text()), path.with_suffix(".safetensors")
    assert card["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.stat().st_size <= 6_000_000
    _, spec = load_network(weights)
    assert spec.network == card["network"]
    assert (spec.classes, spec.size) == (card["data"]["classes"], card["data"]["size"])


def test_shipped_networks_stay_small():
    files = [p for kind in ("teachers", "students") for p in (SHIPPED / kind).glob("*.safetensors")]
    assert sum(path.stat().st_size for path in files) <= 40_000_000


def same_kind_of_machine(record: dict) -> bool:
    here, there = environment(), record["environment"]
    return all(here[key] == there[key] for key in ("machine", "packages"))


def measured(record: dict) -> tuple:
    history = [
        {k: v for k, v in row.items() if not k.startswith("seconds")} for row in record["history"]
    ]
    return record["last"], history, record["images_png"]


def test_a_shipped_record_is_repeated_to_the_last_digit(tmp_path):
    """On the kind of machine and with the packages that made it; on others rounding differs, and
    two runs here must be the same as each other."""
    (shipped,) = read_records("smallest")
    (run,) = read_experiment("smallest")
    place = Place(
        data={}, records=tmp_path / "a", work=tmp_path / "w", device="cpu", progress=False
    )
    again = execute(run, place)
    if same_kind_of_machine(shipped):
        assert measured(json.loads(place.record(run).read_text())) == measured(shipped)
        return
    torch.manual_seed(99)  # the global state must not matter
    other = Place(
        data={}, records=tmp_path / "b", work=tmp_path / "v", device="cpu", progress=False
    )
    assert measured(plain(execute(run, other))) == measured(plain(again))
    for role, report in shipped["last"].items():
        ours = again["last"][role]["accuracy"]
        assert ours == pytest.approx(report["accuracy"], abs=0.1), role


def test_the_trials_name_records_and_zskt_has_the_weight_with_the_best_mean():
    named = {row["records"] for row in paper_table("tuning") if row["records"]}
    assert len(named) == 6
    for experiment, variant in (name.split("/") for name in named):
        assert variant in {record["variant"] for record in read_records(experiment)}
    right = {}
    for record in read_records("zskt-attention"):
        weight = record["settings"]["method"]["attention_weight"]
        right.setdefault(weight, []).append(record["last"]["student"]["accuracy"])
    assert {len(values) for values in right.values()} == {3}
    best = max(right, key=lambda weight: sum(right[weight]))
    assert preset("lite").of_method("zskt").method.attention_weight == best == 100
