"""Records: complete, never overwritten, and the shipped ones what the project says they are."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from scipy import stats

from dfkd_lab.records import (
    Gaps,
    claims,
    environment,
    holm,
    paired,
    read_records,
    read_variants,
    shared_teachers,
    spread,
    summarise,
    t_interval,
    write_record,
)
from dfkd_lite.errors import InputError
from dfkd_lite.methods import GivenConfig
from dfkd_lite.settings import plain

RECORD = {
    "experiment": "trial",
    "name": "one",
    "seed": 0,
    "settings": {},
    "environment": {},
    "last": {"student": {"accuracy": 0.5}},
}


def test_written_once_and_read_back(tmp_path):
    path = write_record(RECORD, tmp_path)
    assert json.loads(path.read_text()) == RECORD
    with pytest.raises(InputError, match="never overwritten"):
        write_record(RECORD, tmp_path)
    with pytest.raises(InputError, match="'seed': Field required"):
        write_record({k: v for k, v in RECORD.items() if k != "seed"}, tmp_path)
    with pytest.raises(InputError, match="no records of 'other'"):
        read_records("other", tmp_path)


def test_summary_is_mean_and_sample_deviation(tmp_path):
    for name, value in (("a", 0.5), ("b", 0.7), ("c", 0.9)):
        write_record(RECORD | {"name": name, "last": {"student": {"accuracy": value}}}, tmp_path)
    summary = summarise(read_records("trial", tmp_path), "accuracy", "student")
    assert (summary.mean, summary.std, summary.low, summary.high, summary.n) == pytest.approx(
        (0.7, 0.2, 0.5, 0.9, 3)
    )
    assert str(summary) == "70.00% ± 20.00% (n = 3, worst 50.00%)"


@pytest.mark.parametrize(
    ("values", "form", "said"),
    [
        ([1, 2, 4], ".1f", "2.3 ± 1.5"),  # variance (16 + 1 + 25) / 9 / 2 = 7 / 3
        ([1, 2, 4], "+6.1f", "  +2.3 ± 1.5"),  # sign and width are the mean's
        ([0.5, 0.7], ".2%", "60.00% ± 14.14%"),
        ([-1.25], "+.2f", "-1.25"),  # of one there is no deviation
    ],
)
def test_mean_and_deviation_in_words(values, form, said):
    assert spread(values, form) == said


def test_a_summary_of_one_run_says_no_deviation(tmp_path):
    write_record(RECORD, tmp_path)
    summary = summarise(read_records("trial", tmp_path), "accuracy", "student")
    assert str(summary) == "50.00% (n = 1, worst 50.00%)"
    assert summary.spread(".1f", 100) == "50.0"


def test_settings_become_plain_data():
    config = GivenConfig(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    assert plain({"method": config, "pair": ("a", 1)}) == {
        "method": {
            "kind": "GivenConfig",
            "images": {"kind": "Tensor", "shape": [2, 1, 4, 4]},
            "synthesis_batch": 128,
            "temperature": 20.0,
            "beta": 0.0,
            "msarc": {
                "kind": "MsarcConfig",
                "stages": None,
                "alphas": None,
                "second_order": False,
                "normalise": False,
                "cam": {"kind": "CamConfig", "weights": "gradient", "relu": True},
            },
        },
        "pair": ["a", 1],
    }


def test_environment_names_code_packages_and_machine():
    found = environment()
    assert found["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert set(found["code"]) == {"commit", "dirty"}
    assert found["machine"] and found["threads"] == torch.get_num_threads()


def test_peak_memory_grows_with_what_is_held():
    """In a process of its own: a peak that came before would hide what is held now."""
    code = """
import torch
from dfkd_lab.records import peak_memory
before = peak_memory()
held = torch.ones(200 * 2**20 // 4)
print(peak_memory() - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 190 * 2**20 < int(done.stdout) < 260 * 2**20


@pytest.mark.parametrize(("experiment", "seeds"), [("digits", 5), ("pneumoniamnist", 3)])
def test_shipped_records_are_whole(experiment, seeds):
    records = read_records(experiment)
    assert [record["seed"] for record in records] == list(range(seeds))
    settings = [{**r["settings"]["distill"], "seed": None} for r in records]
    assert all(one == settings[0] for one in settings)  # the seed is all that differs
    for record in records:
        last = record["history"][-1]
        assert last["episode"] == record["settings"]["distill"]["episodes"]
        # what is reported is the last step
        assert last["accuracy"] == record["last"]["student"]["accuracy"]
        assert record["environment"]["code"]["commit"] and record["environment"]["machine"]
        assert {"teach", "distil"} <= set(record["seconds"])
        assert record["peak_memory_bytes"] > 0


def test_variants_are_paired_by_seed(tmp_path):
    accuracies = {"a": {0: 0.90, 1: 0.95, 3: 0.5}, "b": {0: 0.91, 1: 0.92, 2: 0.1}, "c": {7: 0.5}}
    for variant, rows in accuracies.items():
        for seed, value in rows.items():
            record = RECORD | {"experiment": "variants", "name": f"{variant}_seed{seed}"}
            record |= {"variant": variant, "seed": seed, "diverged": None}
            write_record(record | {"last": {"student": {"accuracy": value}}}, tmp_path)
    failed = RECORD | {"experiment": "variants", "name": "b_seed3", "variant": "b", "seed": 3}
    write_record(failed | {"diverged": "NaN", "last": {}}, tmp_path)
    gaps = paired("a", "b", folder=tmp_path)
    assert gaps.values == pytest.approx((-1, 3))  # seed 2 has one side only, seed 3 diverged
    assert str(gaps) == "+1.0 ± 2.8 points (n = 2, ahead in 1)"  # sqrt(2² + 2²) = 2.83
    with pytest.raises(InputError, match="No seed"):
        paired("a", "c", folder=tmp_path)


def test_variants_come_by_name_in_order_of_their_seeds(tmp_path):
    for variant, seed in (("b", 10), ("b", 2), ("a", 0)):
        changes = {"experiment": "variants", "name": f"{variant}_seed{seed}", "seed": seed}
        write_record(RECORD | changes | {"variant": variant}, tmp_path)
    found = read_variants(["b", "a"], folder=tmp_path)
    assert [record["seed"] for record in found["b"]] == [2, 10]
    assert list(found) == ["b", "a"]
    with pytest.raises(InputError, match="variant called 'c'"):
        read_variants(["c"], folder=tmp_path)


def test_p_of_gaps_is_scipys_paired_test():
    values = (0.4, -0.2, 1.0, 0.6, 0.8)
    assert Gaps(values).p == pytest.approx(stats.ttest_1samp(values, 0).pvalue)
    assert (Gaps(values).p <= 0.05) == (t_interval(values)[0] > 0)
    assert Gaps((0.0, 0.0, 0.0)).p == 1.0 and Gaps((1.0,)).p == 1.0
    assert Gaps((0.2, 0.2, 0.2)).p < 1e-9


def test_holm_by_hand():
    # 0.01 x 3; 0.03 x 2; 0.04 x 1 is less than the one before it
    family = {name: SimpleNamespace(p=p) for name, p in {"a": 0.04, "b": 0.01, "c": 0.03}.items()}
    assert holm(family) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert list(holm(family)) == ["a", "b", "c"]
    assert holm({"a": SimpleNamespace(p=0.6), "b": SimpleNamespace(p=0.9)}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": SimpleNamespace(p=0.02)}) == {"a": 0.02}


def test_what_is_claimed_is_clear_and_stays_so_among_all_that_was_looked_at():
    def gaps(p, clear=True):
        return SimpleNamespace(p=p, clear=clear)

    assert claims({"a": gaps(0.03)}) == {"a": True}
    assert claims({"a": gaps(0.03), "b": gaps(0.04)}) == {"a": False, "b": False}  # 0.06 both
    assert claims({"a": gaps(0.01), "b": gaps(0.04)}) == {"a": True, "b": True}  # 0.02, 0.04
    assert claims({"a": gaps(0.01, clear=False)}) == {"a": False}


def test_pairs_of_two_machines_do_not_count_as_of_one_teacher():
    """Seeds 0, 3 and 4 end in the same teacher there, up to rounding; accuracies of 1, 2 differ."""
    assert shared_teachers("attention-channel", "attention-none") == 5
    assert shared_teachers("attention-per-channel", "attention-none") == 3
    found = read_variants(["attention-per-channel", "attention-none"])
    own, other = (
        {r["seed"]: r["last"]["teacher"]["accuracy"] for r in found[name]} for name in found
    )
    assert [seed for seed in own if own[seed] != other[seed]] == [1, 2]
