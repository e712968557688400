"""Experiment files: runs spelled out by hand, and every mistake refused with its line."""

from dataclasses import replace

import pytest
from yaml import safe_load

from dfkd_lab.file import EXPERIMENTS, read_experiment, select
from dfkd_lite.errors import InputError
from dfkd_lite.generator import ATTENTION_SOURCE
from dfkd_lite.methods import FsscConfig, NoiseConfig
from dfkd_lite.msarc import MsarcConfig
from dfkd_lite.presets import PRESETS

BASE = "about: a trial\ndata: digits\nseeds: [0]\n"  # what comes after it starts in line 4
LITE = PRESETS["lite"]


@pytest.fixture
def read(tmp_path):
    """Reads a text, or bytes, as the file ``trial.yaml``."""

    def reader(content):
        path = tmp_path / "trial.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_experiment(path)

    return reader


@pytest.fixture
def refuse(read, tmp_path):
    """Checks that a text is refused in one line: file, number of the line, and what is said."""

    def check(content, line, *said):
        with pytest.raises(InputError) as caught:
            read(content)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / 'trial.yaml'}:{line}: "), message
        assert "\n" not in message and len(message) < 1500
        assert message.count("trial.yaml") == 1
        for words in said:
            assert words in message

    return check


def cases(*rows):
    """Parameters from (name of the case, text, line, words of the message ...)."""
    params = [pytest.param(text, line, said, id=name) for name, text, line, *said in rows]
    return pytest.mark.parametrize(("text", "line", "said"), params)


# --- What a file says, as runs -------------------------------------------------------------------


def test_the_shortest_file_is_one_run_of_the_preset_lite(read):
    (run,) = read(BASE)
    assert (run.experiment, run.name, run.variant, run.title, run.seed) == (
        "trial", "wrn-16-1_wrn-10-1_seed0", "wrn-16-1_wrn-10-1", "wrn-16-1 > wrn-10-1", 0,
    )  # fmt: skip
    assert (run.data, run.size, run.threads, run.method_name) == ("digits", None, 1, "fssc")
    assert (run.teacher, run.student) == (LITE.teacher, LITE.student)
    assert (run.teach, run.distill, run.method) == (LITE.teach, LITE.distill, LITE.method)
    assert run.changes == {} and run.paper is None


def test_runs_are_cells_times_grid_times_seeds_in_the_file_s_order(read):
    runs = read(
        "about: order\ndata: digits\nseeds: [3, 1]\n"
        "cells: [{name: Full method}, {name: b}]\n"
        "grid: {method.beta: [0.5, 0], data: [digits, pathmnist@28]}\n"
    )
    assert [run.name for run in runs] == [
        "full-method_beta=0.5_digits_seed3",
        "full-method_beta=0.5_digits_seed1",
        "full-method_beta=0.5_pathmnist-28_seed3",
        "full-method_beta=0.5_pathmnist-28_seed1",
        "full-method_beta=0_digits_seed3",
        "full-method_beta=0_digits_seed1",
        "full-method_beta=0_pathmnist-28_seed3",
        "full-method_beta=0_pathmnist-28_seed1",
        "b_beta=0.5_digits_seed3",
        "b_beta=0.5_digits_seed1",
        "b_beta=0.5_pathmnist-28_seed3",
        "b_beta=0.5_pathmnist-28_seed1",
        "b_beta=0_digits_seed3",
        "b_beta=0_digits_seed1",
        "b_beta=0_pathmnist-28_seed3",
        "b_beta=0_pathmnist-28_seed1",
    ]
    assert [run.seed for run in runs] == [3, 1] * 8
    assert [run.method.beta for run in runs] == ([0.5] * 4 + [0.0] * 4) * 2
    assert [(run.data, run.size) for run in runs[:4]] == [("digits", None)] * 2 + [
        ("pathmnist", 28)
    ] * 2
    assert [run.title for run in runs[2:4]] == ["Full method, beta=0.5, pathmnist@28"] * 2
    assert {run.variant for run in runs[2:4]} == {"full-method_beta=0.5_pathmnist-28"}
    assert runs[7].changes == {"method": {"beta": 0}}


def test_the_seed_is_that_of_teacher_and_loop(read):
    runs = read("about: x\ndata: digits\nseeds: [5, 0, 2]\n")
    assert [(run.seed, run.teach.seed, run.distill.seed) for run in runs] == [
        (5, 5, 5),
        (0, 0, 0),
        (2, 2, 2),
    ]
    assert runs[0].name == "wrn-16-1_wrn-10-1_seed5"
    assert replace(runs[0].distill, seed=0) == LITE.distill


def test_grid_over_cell_over_file_over_preset(read):
    (cell, grid) = read(
        BASE
        + """\
settings:
  teach: {lr: 0.3, epochs: 7}
  distill: {episodes: 9}
  method: {meta: {steps: 3, lr: 0.01}, generator: {width: 8}}
cells:
  - name: a
    settings:
      teach: {lr: 0.2}
      method: {meta: {steps: 5}, generator: {attention: {lam: 0.5}}}
grid: {method.meta.kind: [none, reptile]}
"""
    )
    assert cell.teach == replace(LITE.teach, lr=0.2, epochs=7)  # lr: the cell's
    assert cell.distill == replace(LITE.distill, episodes=9)
    attention = replace(LITE.method.generator.attention, lam=0.5)
    expected = replace(
        LITE.method,
        meta=replace(LITE.method.meta, steps=5, lr=0.01, kind="none"),
        generator=replace(LITE.method.generator, width=8, attention=attention),
    )
    assert cell.method == expected
    assert grid.method == replace(expected, meta=replace(expected.meta, kind="reptile"))
    # what is special: not what the file says of all of them
    assert cell.changes == {
        "teach": {"lr": 0.2},
        "method": {"meta": {"steps": 5, "kind": "none"}, "generator": {"attention": {"lam": 0.5}}},
    }


def test_grid_wins_over_the_cell(read):
    (run,) = read(
        BASE + "grid: {teach.lr: [0.05]}\ncells: [{name: a, settings: {teach: {lr: 0.2}}}]\n"
    )
    assert (run.teach.lr, run.changes) == (0.05, {"teach": {"lr": 0.05}})


def test_whole_numbers_become_floats_and_lists_tuples(read):
    (run,) = read(
        BASE + "settings: {distill: {lr: 1}, method: {beta: 0, msarc: {alphas: [1.0, 2.0]}}}\n"
    )
    assert isinstance(run.distill.lr, float) and isinstance(run.method.beta, float)
    msarc = MsarcConfig(alphas=(1.0, 2.0))
    assert run.method == replace(LITE.method, beta=0.0, msarc=msarc)


def test_attention_null_is_the_plain_generator(read):
    plain = replace(LITE.method, generator=replace(LITE.method.generator, attention=None))
    (run,) = read(BASE + "settings: {method: {generator: {attention: null}}}\n")
    assert run.method == plain
    first, second = read(
        BASE + "cells:\n  - name: with\n"
        "  - {name: without, settings: {method: {generator: {attention: null}}}}\n"
    )
    assert (first.method, second.method) == (LITE.method, plain)
    assert second.changes == {"method": {"generator": {"attention": None}}}
    assert read(BASE + "grid: {method.generator.attention: [null]}\n")[0].method == plain
    # a cell may have again what the file took away
    (again,) = read(
        BASE + "settings: {method: {generator: {attention: null}}}\n"
        "cells: [{name: a, settings: {method: {generator: {attention: {lam: 0.1}}}}}]\n"
    )
    assert again.method.generator.attention.lam == 0.1


def test_cell_says_data_networks_method_and_preset_over_the_file(read):
    first, second, third = read(
        BASE
        + """\
preset: colab
teacher: wrn-16-2
student: wrn-16-1
cells:
  - name: as the file
  - {name: other networks, teacher: resnet-18, student: wrn-40-1, data: pathmnist@64}
  - {name: noise, preset: lite, method: noise, settings: {method: {synthesis_batch: 32}}}
"""
    )
    colab = PRESETS["colab"]
    assert (first.teacher, first.student, first.data) == ("wrn-16-2", "wrn-16-1", "digits")
    assert (first.teach, first.distill, first.method) == (
        colab.teach,
        colab.distill,
        colab.method,
    )
    assert (second.teacher, second.student) == ("resnet-18", "wrn-40-1")
    assert (second.data, second.size) == ("pathmnist", 64)
    assert (third.teacher, third.student) == ("wrn-16-2", "wrn-16-1")  # the file's, in every preset
    assert (third.teach, third.distill) == (LITE.teach, LITE.distill)
    assert third.method == NoiseConfig(synthesis_batch=32) and third.method_name == "noise"
    assert [run.variant for run in (first, second, third)] == [
        "as-the-file", "other-networks", "noise",
    ]  # fmt: skip


def test_a_preset_brings_its_networks(read):
    (run,) = read(BASE + "preset: paper\n")
    assert (run.teacher, run.student) == ("wrn-40-2", "wrn-16-1")
    assert run.method == FsscConfig(generator=ATTENTION_SOURCE)


def test_pairs_of_networks(read):
    first, second = read(BASE + "grid: {pair: [wrn-16-2 > wrn-10-1, resnet-18>wrn-16-1]}\n")
    assert (first.teacher, first.student) == ("wrn-16-2", "wrn-10-1")
    assert (second.teacher, second.student) == ("resnet-18", "wrn-16-1")
    assert first.name == "wrn-16-2_wrn-10-1_seed0" and first.title == "wrn-16-2 > wrn-10-1"


def test_axes_teacher_student_and_method(read):
    runs = read(
        BASE + "grid: {teacher: [wrn-16-1, wrn-16-2], student: [wrn-10-1], method: [noise, fssc]}\n"
    )
    assert [(run.teacher, run.student, run.method_name) for run in runs] == [
        ("wrn-16-1", "wrn-10-1", "noise"),
        ("wrn-16-1", "wrn-10-1", "fssc"),
        ("wrn-16-2", "wrn-10-1", "noise"),
        ("wrn-16-2", "wrn-10-1", "fssc"),
    ]
    assert runs[0].name == "wrn-16-1_wrn-10-1_noise_seed0"
    assert [type(run.method) for run in runs[:2]] == [NoiseConfig, FsscConfig]


def test_settings_that_all_methods_have_can_be_varied_with_the_method(read):
    runs = read(BASE + "grid: {method: [fssc, noise], method.temperature: [1, 4]}\n")
    assert [(run.method_name, run.method.temperature) for run in runs] == [
        ("fssc", 1.0),
        ("fssc", 4.0),
        ("noise", 1.0),
        ("noise", 4.0),
    ]


@pytest.mark.parametrize(
    ("said", "name", "size"),
    [
        ("digits", "digits", None),
        ("digits@32", "digits", 32),
        ("'digits@224'", "digits", 224),
        ("{name: digits, size: 8}", "digits", 8),
        ("{name: 'digits@32'}", "digits@32", None),
        ("/home/me@work/images", "/home/me@work/images", None),
        ("/home/me@work/images@64", "/home/me@work/images", 64),
        ("a@16@32", "a@16", 32),
        ("/" + "folder/" * 25 + "a.npz", "/" + "folder/" * 25 + "a.npz", None),
        ("/資料/圖@64", "/資料/圖", 64),
        ("digits@²", "digits@²", None),  # a digit to str.isdigit(), but no number
    ],
)
def test_data_by_name_or_path_and_size(read, said, name, size):
    (run,) = read(f"about: x\ndata: {said}\nseeds: [0]\n")
    assert (run.data, run.size) == (name, size)
    if name.isascii() and len(name) < 99:  # in a grid it is part of the record's name
        (run,) = read(f"about: x\nseeds: [0]\ngrid: {{data: [{said}]}}\n")
        assert (run.data, run.size) == (name, size)


def test_paper_s_cell_comes_with_its_number(read):
    runs = read(
        BASE
        + """\
paper: {table: table5_ablation, row: {variant: full method}, column: CIFAR-10}
cells:
  - name: the file's
  - name: its own
    paper:
      table: table4_medical
      row: {dataset: PneumoniaMNIST}
      differs: 28 px, not 224
  - name: of another method
    paper:
      table: table2_benchmark
      row: {dataset: CIFAR-10, teacher: VGG-11, student: ResNet-18}
      column: LS-GDFD
"""
    )
    assert runs[0].paper == {
        "table": "table5_ablation",
        "row": {"variant": "full method"},
        "column": "CIFAR-10",
        "differs": "",
        "accuracy": pytest.approx(0.9491),
    }
    assert runs[1].paper == {
        "table": "table4_medical",
        "row": {"dataset": "PneumoniaMNIST"},
        "column": "paper",
        "differs": "28 px, not 224",
        "accuracy": pytest.approx(0.7853),
    }
    assert runs[2].paper["accuracy"] is None  # the table has no number there


@pytest.mark.parametrize("about", ["Сравнение", "?", "a long sentence " * 20])
def test_about_is_any_text(read, about):
    assert len(read(f"about: '{about}'\ndata: digits\nseeds: [0]\n")) == 1


def test_line_ends_and_byte_order_mark_of_windows(read):
    text = (
        "\ufeff# a comment\r\nabout: Größe, λ, 数\r\ndata: digits\r\nseeds: [1]\r\nthreads: 2\r\n"
    )
    (run,) = read(text)
    assert (run.seed, run.threads, run.data) == (1, 2, "digits")


# --- Refused: names ------------------------------------------------------------------------------


@cases(
    ("key", BASE + "treads: 2\n", 4, "treads", "Did you mean 'threads'"),
    ("about", "data: digits\nseeds: [0]\nabuot: x\n", 3, "abuot", "Did you mean 'about'"),
    ("data", "about: x\nseeds: [0]\ndate: digits\n", 3, "date", "Did you mean 'data'"),
    ("key of a cell", BASE + "cells:\n  - name: a\n    techer: vgg-11\n", 6, "Did you mean 'teach"),
    ("name of a cell", BASE + "cells:\n  - teacher: wrn-16-1\n    nane: a\n", 6, "mean 'name'"),
    ("seeds in a cell", BASE + "cells:\n  - name: a\n    seeds: [1]\n", 6, "seeds"),
    ("key of data", "about: x\ndata: {name: a, sise: 8}\nseeds: [0]\n", 2, "mean 'size'"),
    ("preset", BASE + "preset: collab\n", 4, "collab", "Did you mean 'colab'"),
    ("method", BASE + "method: fscc\n", 4, "fscc", "Did you mean 'fssc'"),
    ("method that needs images", BASE + "method: given\n", 4, "given", "fssc, mix, noise"),
    ("teacher", BASE + "teacher: resnet-43\n", 4, "resnet-43", "Did you mean 'resnet-34'"),
    ("student", BASE + "threads: 1\nstudent: vgg-12\n", 5, "vgg-12", "Did you mean 'vgg-11'"),
    ("depth of a WRN", BASE + "student: wrn-11-1\n", 4, "6n + 4", "11"),
    ("no width of a WRN", BASE + "student: wrn-16-0\n", 4, "at least 1"),
    ("wide WRN", BASE + "student: wrn-16-99999999999\n", 4),
    ("deep WRN", BASE + "student: wrn-1204-1\n", 4, "1204"),
    ("wrn- alone", BASE + "teacher: wrn-16-\n", 4, "'wrn-16-'"),
    ("teacher of a cell", BASE + "cells:\n  - name: a\n    teacher: wrn-17-1\n", 6, "17"),
    ("part", BASE + "settings:\n  teech: {lr: 0.1}\n", 5, "teech", "Did you mean 'teach'"),
    ("setting", BASE + "settings:\n  teach:\n    epocs: 3\n", 6, "epocs", "Did you mean 'epochs'"),
    (
        "deep setting",
        BASE + "settings:\n  method:\n    generator:\n      attention:\n        lamm: 0\n",
        8,
        "lamm",
        "Did you mean 'lam'",
    ),
    (
        "setting of a cell",
        BASE + "cells:\n  - name: a\n    settings:\n      distill:\n        epsiodes: 3\n",
        8,
        "Did you mean 'episodes'",
    ),
    ("seed as a setting", BASE + "settings:\n  teach:\n    seed: 3\n", 6, "seed"),
    (
        "setting of another method",
        BASE + "method: noise\nsettings:\n  method:\n    beta: 0\n",
        7,
        "beta",
        "synthesis_batch, temperature",
    ),
    (
        "kind",
        BASE + "settings:\n  method:\n    meta:\n      kind: reptil\n",
        7,
        "reptil",
        "Did you mean 'reptile'",
    ),
    (
        "precision",
        BASE + "settings:\n  teach: {precision: float32}\n  distill: {precision: bfloat61}\n",
        6,
        "Did you mean 'bfloat16'",
    ),
    ("axis", BASE + "grid:\n  techer: [wrn-16-1]\n", 5, "techer", "Did you mean 'teacher'"),
    ("axis of data", BASE + "grid:\n  dat: [digits]\n", 5, "dat", "Did you mean 'data'"),
    ("seed as an axis", BASE + "grid:\n  seed: [1]\n", 5, "seed"),
    ("seeds as an axis", BASE + "grid:\n  seeds: [1]\n", 5, "seeds"),
    ("setting as an axis", BASE + "grid:\n  method.bta: [1]\n", 5, "bta", "Did you mean", "beta'"),
    ("axis without part", BASE + "grid:\n  beta: [1]\n", 5, "beta", "method"),
    ("axis of a wrong part", BASE + "grid:\n  metod.beta: [1]\n", 5, "Did you mean 'method"),
    ("axis beyond a setting", BASE + "grid:\n  method.beta.x: [1]\n", 5, "beta"),
    ("empty axis", BASE + "grid:\n  '': [1]\n", 5),
    ("axis of dots", BASE + "grid:\n  'method.': [1]\n", 5),
    ("method of the grid", BASE + "grid:\n  method: [fssc, nois]\n", 5, "Did you mean 'noise'"),
    ("teacher of the grid", BASE + "grid:\n  teacher: [resnet-43]\n", 5, "mean 'resnet-34'"),
    ("pair of the grid", BASE + "grid:\n  pair: [wrn-16-1 > vgg-12]\n", 5, "mean 'vgg-11'"),
    (
        "table",
        BASE + "paper:\n  table: table4_medica\n  row: {dataset: PathMNIST}\n",
        5,
        "Did you mean 'table4_medical'",
    ),
    (
        "key of the row",
        BASE + "paper:\n  table: table4_medical\n  row: {datset: PathMNIST}\n",
        6,
        "Did you mean 'dataset'",
    ),
    (
        "row",
        BASE + "paper:\n  table: table4_medical\n  row: {dataset: PathMNST}\n",
        6,
        "PathMNST",
        "Did you mean 'PathMNIST'",
    ),
    (
        "column",
        BASE + "paper:\n  table: table4_medical\n  row: {dataset: PathMNIST}\n  column: papper\n",
        7,
        "Did you mean 'paper'",
    ),
    (
        "column that is not there",
        BASE + "paper:\n  table: table5_ablation\n  row: {variant: full method}\n",
        4,
        "'paper'",
        "CIFAR-10",
    ),
)  # fmt: skip
def test_wrong_names_are_refused_with_line_and_nearest(refuse, text, line, said):
    refuse(text, line, *said)


@cases(
    ("name of a table outside", "table: ../paper/table4_medical\n  row: {dataset: PathMNIST}", 5),
    ("no row", "table: table4_medical", 4, "row"),
    ("no table", "row: {dataset: PathMNIST}", 4, "table"),
    ("all rows", "table: table4_medical\n  row: {}", 6, "3 rows"),
    ("five rows", "table: table2_benchmark\n  row: {dataset: CIFAR-10}", 6, "5 rows"),
    ("row of numbers", "table: table6_lambda\n  row: {lambda: 0.01}", 6, "0.01", "string"),
    ("row of null", "table: table6_lambda\n  row: {lambda: null}", 6, "lambda", "string"),
    (
        "column of words",
        "table: table4_medical\n  row: {dataset: PathMNIST}\n  column: teacher",
        7,
        "teacher",
    ),
    (
        "column of pixels",
        "table: table4_medical\n  row: {dataset: PneumoniaMNIST}\n  column: resolution",
        7,
        "resolution",
    ),
    (
        "column of few pixels",
        "table: table4_medical\n  row: {dataset: PathMNIST}\n  column: resolution",
        7,
        "resolution",
    ),
    ("unknown key", "table: table5_ablation\n  row: {}\n  diffres: x", 7, "mean 'differs'"),
)  # fmt: skip
def test_wrong_cells_of_the_paper_are_refused(refuse, text, line, said):
    refuse(BASE + f"paper:\n  {text}\n", line, *said)


def test_paper_that_is_not_a_mapping(refuse):
    refuse(BASE + "paper: table4_medical\n", 4, "paper")


# --- Refused: the line is that of the mistake, not of its namesake -------------------------------


@cases(
    (
        "type in a later part",
        BASE + "settings:\n  teach:\n    lr: 0.1\n  distill:\n    lr: high\n",
        8,
        "distill.lr",
        "high",
    ),
    (
        "range in a later part",
        BASE + "settings:\n  teach:\n    lr: 0.1\n  distill:\n    lr: 0\n",
        8,
        "lr",
    ),
    (
        "file's, where a cell has the name",
        BASE + "settings:\n  teach:\n    lr: high\n"
        "cells:\n  - name: a\n    settings:\n      distill:\n        lr: 0.1\n",
        6,
        "teach.lr",
    ),
    (
        "file's, where a cell has the part",
        BASE + "settings:\n  teach:\n    lr: high\n"
        "cells:\n  - name: a\n    settings: {teach: {epochs: 3}}\n",
        6,
        "teach.lr",
    ),
    (
        "file's range, where a cell has the name",
        BASE + "settings:\n  teach:\n    lr: 0\n"
        "cells:\n  - name: a\n    settings:\n      distill:\n        lr: 0.1\n",
        6,
        "lr",
    ),
    (
        "cell's, where the file has the name",
        BASE + "settings:\n  teach:\n    lr: 0.1\n"
        "cells:\n  - name: a\n  - name: b\n    settings:\n      teach: {lr: 0}\n",
        11,
        "lr",
    ),
    (
        "grid's, where the file has the name",
        BASE + "settings:\n  teach:\n    lr: 0.1\ngrid:\n  teach.lr: [0.1, 0]\n",
        8,
        "lr",
    ),
    (
        "grid's, where a cell has the name",
        BASE + "cells:\n  - name: a\n    settings: {teach: {lr: 0.1}}\ngrid:\n  teach.lr: [high]\n",
        8,
        "lr",
    ),
    ("method, after its settings", BASE + "settings:\n  method:\n    beta: 0\nmethod: x\n", 7),
    (
        "preset, after paper",
        BASE + "paper: {table: table4_medical, row: {dataset: PathMNIST}}\npreset: papper\n",
        5,
        "Did you mean 'paper'",
    ),
    (
        "row of the paper, after the networks",
        BASE + "teacher: wrn-16-1\nstudent: wrn-10-1\npaper:\n  table: table4_medical\n"
        "  row: {datset: PathMNIST}\n",
        8,
    ),
    (
        "teacher of a cell, after the file's",
        BASE + "teacher: wrn-16-1\ncells:\n  - name: a\n  - name: b\n    teacher: resnet-43\n",
        8,
    ),
    (
        "file's teacher, where a cell has its own",
        BASE + "teacher: resnet-43\ncells:\n  - {name: a, teacher: wrn-16-1}\n  - name: b\n",
        4,
    ),
    (
        "student in the second of two same lines",
        BASE + "cells:\n  - name: a\n    student: wrn-10-1\n  - name: b\n    student: wrn-9-1\n",
        8,
    ),
    ("against the preset's default", BASE + "settings: {distill: {episodes: 3}}\n", 4, "warm_up"),
    (
        "file's, where a cell takes away what stands before",
        BASE + "settings:\n  method:\n    generator: {attention: {lam: 0.1}}\n    beta: -1\n"
        "cells:\n  - name: a\n    settings: {method: {generator: {attention: null}}}\n",
        7,
        "beta",
    ),
    (
        "two that fit only together, and a mistake",
        BASE + "settings:\n  distill:\n    episodes: 3\n    warm_up: 1\n    lr: 0\n",
        8,
        "lr",
    ),
    (
        "two that do not fit together",
        BASE + "settings:\n  distill:\n    episodes: 20\n    warm_up: 30\n",
        7,
        "warm_up",
    ),
    ("axis against the default", BASE + "grid:\n  distill.episodes: [9, 3]\n", 5, "warm_up"),
    (
        "two settings against each other",
        BASE + "settings:\n  method:\n    meta: {kind: maml, optimiser: adam}\n",
        6,
        "sgd",
    ),
)  # fmt: skip
def test_the_line_is_that_of_the_mistake(refuse, text, line, said):
    refuse(text, line, *said)


# --- Refused: values -----------------------------------------------------------------------------


@cases(
    ("seeds one number", "seeds: 0\n", 2, "seeds"),
    ("seeds empty", "seeds: []\n", 2, "seeds", "at least 1"),
    ("seeds null", "seeds:\n", 2, "seeds"),
    ("seeds of null", "seeds: [null]\n", 2, "integer"),
    ("seeds of text", "seeds: ['0']\n", 2, "integer"),
    ("seeds of booleans", "seeds: [true]\n", 2, "integer"),
    ("seeds of floats", "seeds: [0.0]\n", 2, "integer"),
    ("seeds of NaN", "seeds: [.nan]\n", 2, "finite"),
    ("seeds negative", "seeds: [0, -1]\n", 2, "-1"),
    ("seeds repeated", "seeds: [0, 1, 0]\n", 2, "seed"),
    ("seeds too large for torch", f"seeds: [{2**64}]\n", 2, str(2**64)),
    ("seeds of 5000 digits", f"seeds: [{'9' * 5000}]\n", 2),
    ("threads none", "seeds: [0]\nthreads: 0\n", 3, "threads", "1"),
    ("threads boolean", "seeds: [0]\nthreads: true\n", 3, "integer"),
    ("threads float", "seeds: [0]\nthreads: 1.0\n", 3, "integer"),
    ("threads null", "seeds: [0]\nthreads:\n", 3, "integer"),
    ("threads beyond any machine", "seeds: [0]\nthreads: 10000000000\n", 3, "threads"),
)
def test_wrong_seeds_and_threads_are_refused(refuse, text, line, said):
    refuse(f"about: x\n{text}data: digits\n", line, *said)


@cases(
    ("about missing", "data: digits\nseeds: [0]\n", 1, "'about' is missing"),
    ("data missing", "about: x\nseeds: [0]\n", 1, "'data' is missing"),
    ("seeds missing", "about: x\ndata: digits\n", 1, "'seeds' is missing"),
    ("about a number", "about: 3\ndata: digits\nseeds: [0]\n", 1, "about", "string"),
    ("about null", "about:\ndata: digits\nseeds: [0]\n", 1, "about", "string"),
    ("about empty", "about: ''\ndata: digits\nseeds: [0]\n", 1, "about"),
    ("about a date", "about: 2026-01-31\ndata: digits\nseeds: [0]\n", 1, "quotes"),
    ("data a number", "about: x\ndata: 5\nseeds: [0]\n", 2, "5", "name"),
    ("data null", "about: x\ndata:\nseeds: [0]\n", 2, "data", "name"),
    ("data empty", "about: x\ndata: ''\nseeds: [0]\n", 2, "data"),
    ("data a list", "about: x\ndata: [digits]\nseeds: [0]\n", 2, "data"),
    ("data without name", "about: x\ndata: {size: 16}\nseeds: [0]\n", 2, "name", "missing"),
    ("data only a size", "about: x\ndata: '@16'\nseeds: [0]\n", 2, "data"),
    ("size none", "about: x\ndata: digits@0\nseeds: [0]\n", 2, "0", "8"),
    ("size too small", "about: x\ndata: {name: digits, size: 7}\nseeds: [0]\n", 2, "7", "8"),
    ("size too large", "about: x\ndata: digits@225\nseeds: [0]\n", 2, "225", "224"),
    ("size negative", "about: x\ndata: {name: digits, size: -16}\nseeds: [0]\n", 2, "-16"),
    ("size boolean", "about: x\ndata: {name: digits, size: true}\nseeds: [0]\n", 2, "integer"),
    ("size float", "about: x\ndata: {name: digits, size: 16.0}\nseeds: [0]\n", 2, "integer"),
    ("preset a number", BASE + "preset: 3\n", 4, "preset", "string"),
    ("preset null", BASE + "preset:\n", 4, "preset"),
    ("preset empty", BASE + "preset: ''\n", 4, "preset"),
    ("method null", BASE + "method:\n", 4, "method"),
    ("method empty", BASE + "method: ''\n", 4, "method"),
    ("method a list", BASE + "method: [fssc]\n", 4, "method"),
    ("teacher null", BASE + "teacher:\n", 4, "teacher"),
    ("teacher empty", BASE + "teacher: ''\n", 4, "teacher"),
    ("student boolean", BASE + "student: true\n", 4, "student"),
    ("paper null in a cell", BASE + "cells:\n  - name: a\n    paper:\n", 6, "paper"),
)
def test_wrong_choices_are_refused(refuse, text, line, said):
    refuse(text, line, *said)


@cases(
    ("NaN", "teach: {lr: .nan}", 5, "lr", "nan"),
    ("infinity", "teach: {lr: .inf}", 5, "lr", "inf"),
    ("minus infinity", "method: {beta: -.inf}", 5, "beta", "inf"),
    ("number that is infinite", "teach: {lr: 1.0e+400}", 5, "lr", "finite"),
    ("NaN deep inside", "method: {generator: {attention: {lam: .nan}}}", 5, "lam", "nan"),
    ("NaN for a whole number", "teach: {epochs: .nan}", 5, "epochs", "finite"),
    ("1e3", "teach: {epochs: 1e3}", 5, "'1e3'", "integer"),
    ("1e-3", "teach: {lr: 1e-3}", 5, "'1e-3'", "number"),
    ("boolean for a number", "teach: {lr: true}", 5, "lr", "number"),
    ("yes for a whole number", "teach: {epochs: yes}", 5, "epochs", "integer"),
    ("float for a whole number", "teach: {epochs: 3.0}", 5, "3.0", "integer"),
    ("number for a boolean", "teach: {flip: 1}", 5, "flip", "boolean"),
    ("text for a boolean", "teach: {flip: 'yes'}", 5, "flip", "boolean"),
    ("null for a number", "teach: {lr: null}", 5, "lr", "number"),
    ("null for a whole number", "teach: {epochs: }", 5, "epochs", "integer"),
    ("null for a boolean", "method: {agree_only: null}", 5, "agree_only", "boolean"),
    ("null for text", "method: {meta: {kind: null}}", 5, "kind", "string"),
    ("null for teach", "teach: null", 5, "teach"),
    ("null for the generator", "method: {generator: null}", 5, "generator"),
    ("null for meta", "method: {meta: null}", 5, "meta"),
    ("number for a part", "method: {generator: 3}", 5, "generator"),
    ("part for a number", "method: {beta: {x: 3}}", 5, "beta", "number"),
    ("text for a list", "method: {msarc: {alphas: '12'}}", 5, "alphas"),
    ("negative in a list", "method: {msarc: {alphas: [1.0, -2.0]}}", 5, "alpha", "-2.0"),
    ("NaN in a list", "method: {msarc: {alphas: [.nan]}}", 5, "alpha", "nan"),
    ("no stage", "method: {msarc: {stages: 0}}", 5, "stages", "at least 1"),
    ("no epoch", "teach: {epochs: 0}", 5, "epochs", "at least 1"),
    ("batch of one", "distill: {batch_size: 1}", 5, "batch_size", "at least 2"),
    ("negative rate", "distill: {lr: -0.1}", 5, "lr", "above 0"),
    ("rate that grows", "distill: {lr_final: 3}", 5, "lr_final", "at most 0.1"),
    ("momentum of one", "teach: {momentum: 1}", 5, "momentum", "at most 0.9999"),
    ("warm-up to the end", "distill: {warm_up: 64}", 5, "warm_up", "at most 63"),
    ("negative lambda", "method: {generator: {attention: {lam: -1}}}", 5, "lam", "at least 0"),
    ("lambda too large", "method: {generator: {attention: {lam: 1001}}}", 5, "at most 1000"),
    ("no inner step", "method: {meta: {steps: 0}}", 5, "steps", "at least 1"),
    ("negative kappa", "method: {kappa: -1}", 5, "kappa", "at least 0"),
    ("no temperature", "method: {temperature: 0}", 5, "temperature", "above 0"),
    ("NaN temperature", "method: {temperature: .nan}", 5, "temperature"),
    ("momentum of the statistics", "method: {bn_momentum: 1.5}", 5, "momentum", "at most"),
    ("synthesis of one", "method: {synthesis_batch: 1}", 5, "synthesis_batch", "at least 2"),
)
def test_wrong_settings_are_refused(refuse, text, line, said):
    refuse(BASE + f"settings:\n  {text}\n", line, *said)
    refuse(BASE + f"cells:\n  - name: a\n    settings:\n      {text}\n", 7, *said)


@cases(
    ("batch", "synthesis_batch: 0", 6, "synthesis_batch", "at least"),
    ("temperature", "temperature: -1", 6, "temperature", "above 0"),
    ("type", "synthesis_batch: 2.5", 6, "synthesis_batch", "integer"),
)
def test_wrong_settings_of_noise_are_refused(refuse, text, line, said):
    refuse(BASE + f"method: noise\nsettings:\n  method: {{{text}}}\n", line, *said)


@cases(
    ("settings null", "settings:\n", 4, "settings"),
    ("settings a list", "settings: [teach]\n", 4, "settings"),
    ("settings a number", "settings: 1\n", 4, "settings"),
    ("cells empty", "cells: []\n", 4, "cells"),
    ("cells null", "cells:\n", 4, "cells"),
    ("cells a mapping", "cells: {name: a}\n", 4, "cells"),
    ("cell of text", "cells:\n  - a\n", 5, "cells.0"),
    ("cell of null", "cells:\n  - name: a\n  -\n", 6, "cells.1"),
    ("cell without name", "cells:\n  - name: a\n  - teacher: wrn-16-1\n", 6, "name", "missing"),
    ("cell's name a number", "cells:\n  - name: 3\n", 5, "name", "string"),
    ("cell's name null", "cells:\n  - name:\n", 5, "name", "string"),
    ("cell's name a date", "cells:\n  - name: 2026-01-31\n", 5, "quotes"),
    ("cell's name empty", "cells:\n  - name: ''\n", 5, "name"),
    ("cell's name without letters", "cells:\n  - name: a\n  - name: '???'\n", 6, "???"),
    ("cell's name too long for a file", f"cells:\n  - name: {'a' * 300}\n", 5, "name"),
    ("two cells of one name", "cells:\n  - name: a\n  - name: b\n  - name: a\n", 7, "'a'"),
    ("two cells of one file's name", "cells:\n  - name: A b\n  - name: a-B\n", 6, "a-b"),
    ("grid empty", "grid: {}\n", 4, "grid"),
    ("grid null", "grid:\n", 4, "grid"),
    ("grid a list", "grid: [method.beta]\n", 4, "grid"),
    ("axis without values", "grid:\n  method.beta: [0.1]\n  teach.lr: []\n", 6, "teach.lr"),
    ("axis of one value", "grid:\n  method.beta: 1\n", 5, "method.beta"),
    ("axis null", "grid:\n  method.beta:\n", 5, "method.beta"),
    ("value of a wrong type", "grid:\n  method.beta: [0, much]\n", 5, "much", "number"),
    ("value out of range", "grid:\n  method.beta: [0, -1]\n", 5, "beta", "at least 0"),
    ("value not a number", "grid:\n  method.beta: [.nan]\n", 5, "beta", "nan"),
    ("value null", "grid:\n  method.beta: [null]\n", 5, "beta"),
    ("value twice", "grid:\n  method.beta: [0.1, 0.2, 0.1]\n", 5, "beta=0.1"),
    ("value twice, in two ways", "grid:\n  method.beta: [0, 0.0]\n", 5, "beta"),
    (
        "name too long with the grid's",
        f"cells:\n  - name: {'a' * 100}\ngrid:\n  data: [{'b' * 100}]\n",
        5,
        "name",
    ),
    ("value without letters", "grid:\n  data: [圖]\n", 5),
    ("values of one file's name", "grid:\n  data: [a b, a-b]\n", 5, "a-b"),
    ("data a number", "grid:\n  data: [digits, 3]\n", 5, "data", "3"),
    ("data null", "grid:\n  data: [null]\n", 5, "data"),
    ("data empty", "grid:\n  data: ['']\n", 5, "data"),
    ("data of the wrong size", "grid:\n  data: [digits@7]\n", 5, "7", "8"),
    ("teacher null", "grid:\n  teacher: [null]\n", 5, "teacher"),
    ("teacher empty", "grid:\n  teacher: ['']\n", 5, "teacher"),
    ("teacher a list", "grid:\n  teacher: [[wrn-16-1]]\n", 5, "teacher"),
    ("method boolean", "grid:\n  method: [true]\n", 5, "method"),
    ("pair without arrow", "grid:\n  pair: [wrn-16-1 wrn-10-1]\n", 5, "teacher > student"),
    ("pair without student", "grid:\n  pair: ['wrn-16-1 >']\n", 5, "teacher > student"),
    ("pair of three", "grid:\n  pair: [wrn-16-1 > wrn-10-1 > wrn-10-1]\n", 5),
    (
        "pair and teacher",
        "grid:\n  teacher: [wrn-16-2]\n  pair: [wrn-16-1 > wrn-10-1]\n",
        6,
        "pair",
    ),
    (
        "axis inside an axis",
        "grid:\n  method.generator.attention: [null]\n  method.generator.attention.lam: [0.1]\n",
        6,
        "attention",
    ),
    (
        "axis around an axis",
        "grid:\n  method.generator.attention.lam: [0.1]\n  method.generator.attention: [null]\n",
        6,
        "attention",
    ),
)
def test_wrong_cells_and_grids_are_refused(refuse, text, line, said):
    refuse(BASE + text, line, *said)


# --- Refused: what is not such a file ------------------------------------------------------------


@cases(
    ("nothing", "", 1, "about"),
    ("a comment", "# to do\n", 1, "about"),
    ("null", "~\n", 1, "about"),
    ("text", "a trial\n", 1, "about"),
    ("a list", "# a list\n- about: x\n- data: digits\n", 2, "about"),
    ("two mappings", "about: x: y\n", 1, "YAML"),
    ("list in a mapping", "about: x\n- y\n", 2, "YAML"),
    ("indentation", BASE + "cells:\n  - name: a\n   teacher: b\n", 6, "YAML"),
    ("reserved character", BASE + "teacher: @wrn\n", 4, "YAML"),
    ("tab", BASE + "settings:\n\tteach: {lr: 0.1}\n", 5, "YAML", "\\t"),
    ("closed twice", BASE + "settings: {teach: {lr: 0.1}}}\n", 4, "YAML"),
    ("two documents", BASE + "---\n" + BASE, 4, "document"),
    ("YAML of the future", "%YAML 3.0\n---\n" + BASE, 1, "YAML"),
    ("bell", BASE + "student: wrn-10-1\x07\n", 4),
    ("bell after long letters", "about: " + "λ" * 99 + f"\n{BASE[15:]}student: \x07\n", 4),
    ("null character", BASE + "student: wrn-10-1\0\n", 4),
    ("half a character", BASE + 'cells:\n  - name: "\\ud800"\n', 5),
    ("Latin-1", BASE.encode() + b"# caf\xe9\n", 4, "UTF-8"),
    ("UTF-16", BASE.encode("utf-16"), 1, "UTF-8"),
    ("bytes", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", 1, "UTF-8"),
    ("key twice", BASE + "about: y\n", 4, "'about'", "twice"),
    ("setting twice", BASE + "settings:\n  teach:\n    lr: 0.1\n    lr: 0.2\n", 7, "'lr'", "twice"),
    ("key of a cell twice", BASE + "cells:\n  - name: a\n    name: b\n", 6, "'name'", "twice"),
    ("axis twice", BASE + "grid:\n  teach.lr: [0.1]\n  teach.lr: [0.2]\n", 6, "teach.lr", "twice"),
    ("number for a name", BASE + "3: 4\n", 4, "3"),
    ("float for a name", BASE + ".nan: 4\n", 4),
    ("null for a name", BASE + "settings:\n  teach:\n    ~: 4\n", 6),
    ("boolean for a name", BASE + "settings:\n  teach:\n    on: 4\n", 6),
    ("date for a name", BASE + "2026-01-31: 4\n", 4),
    ("list for a name", BASE + "? [a, b]\n: 3\n", 4),
    ("mapping for a name", BASE + "? {a: b}\n: 3\n", 4),
    ("date that is none", BASE + "student: 2026-99-99\n", 4),
    ("binary number without digits", BASE + "threads: 0b_\n", 4),
)
def test_what_is_not_such_a_file_is_refused(refuse, text, line, said):
    refuse(text, line, *said)


@cases(
    ("alias", "settings: {teach: &s {lr: 0.1}, distill: *s}\n", 4),
    ("alias of a number", "settings: {teach: {lr: &lr 0.1}, distill: {lr: *lr}}\n", 4),
    ("merged", "cells: [{name: a, settings: {teach: {<<: {lr: 0.1}}}}]\n", 4),
    ("alias of nothing", "settings: *nowhere\n", 4, "nowhere"),
    ("mapping in itself", "settings: &s {teach: *s}\n", 4),
    ("list in itself", "grid: {teach.lr: &s [0.1, *s]}\n", 4),
    ("own tag", "settings: !mine {teach: {lr: 0.1}}\n", 4, "!mine"),
    ("set", "settings: !!set {teach, distill}\n", 4),
    ("bytes", "student: !!binary d3JuLTEwLTE=\n", 4),
    ("not the number it says", "threads: !!int one\n", 4),
    ("not the float it says", "settings: {teach: {lr: !!float low}}\n", 4),
    ("not the boolean it says", "settings: {teach: {flip: !!bool maybe}}\n", 4),
    ("deep list", "settings: " + "[" * 1000 + "]" * 1000 + "\n", 4),
    ("deep mapping", "settings: " + "{teach: " * 300 + "1" + "}" * 300 + "\n", 4),
    ("very deep mapping", "settings: " + "{teach: " * 1000 + "1" + "}" * 1000 + "\n", 4),
    ("deep value in the grid", "grid: {teach.lr: " + "[" * 300 + "]" * 300 + "}\n", 4),
)
def test_anchors_tags_and_depths_are_refused(refuse, text, line, said):
    refuse(BASE + text, line, *said)


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.mkdir [{trace}]",
        "!!python/object/apply:os.system ['mkdir {trace}']",
        "!!python/object/new:os.mkdir [{trace}]",
        "!!python/object:pathlib.Path {{}}",
        "!!python/name:os.system",
        "!!python/module:os",
        "!!python/tuple [1, 2]",
        "!<tag:yaml.org,2002:python/object/apply:os.mkdir> [{trace}]",
    ],
)
def test_python_tags_never_run(refuse, tmp_path, tag):
    trace = tmp_path / "trace"
    refuse(BASE + f"settings: {tag.format(trace=trace)}\n", 4)
    refuse(BASE + f"cells:\n  - name: {tag.format(trace=trace)}\n", 5)
    assert not trace.exists()


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(InputError, match=r"no experiment .* 'table5-digit'\. .* 'table5-digits'"):
        read_experiment("table5-digit")
    with pytest.raises(InputError, match=r"no file .*tabel5-digits.yaml\. .*/table5-digits.yaml\?"):
        read_experiment(tmp_path / "tabel5-digits.yaml")
    for path in (tmp_path, ""):
        with pytest.raises(InputError, match="is a folder"):
            read_experiment(path)
    for path in (tmp_path / "none.yaml", tmp_path / ("a" * 300 + ".yaml")):
        with pytest.raises(InputError, match="There is no"):
            read_experiment(path)


def test_a_colon_in_the_path_is_no_part_of_the_message(tmp_path):
    path = tmp_path / "a: b" / "trial.yaml"
    path.parent.mkdir()
    path.write_text(BASE + "grid:\n  method.beta: [much]\n")
    with pytest.raises(InputError) as caught:
        read_experiment(path)
    assert str(caught.value).startswith(f"{path}:5: 'method.beta' is 'much'; expected: ")


# --- Some of the runs ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("select") / "trial.yaml"
    path.write_text(
        "about: x\ndata: digits\nseeds: [0, 1, 10]\ncells:\n  - name: Full method\n"
        "  - {name: noise, method: noise}\n"
        "  - {name: other, data: pathmnist@28, teacher: wrn-16-2, student: wrn-16-1}\n"
    )
    return read_experiment(path)


FULL = ["full-method_seed0", "full-method_seed1", "full-method_seed10"]
NOISE = ["noise_seed0", "noise_seed1", "noise_seed10"]
OTHER = ["other_seed0", "other_seed1", "other_seed10"]


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ([], FULL + NOISE + OTHER),
        (["seed=1"], ["full-method_seed1", "noise_seed1", "other_seed1"]),
        (["SEED=10"], ["full-method_seed10", "noise_seed10", "other_seed10"]),
        (["variant=full-method"], FULL),
        (["VARIANT=Full-Method"], FULL),
        (["method=noise"], NOISE),
        (["Method=FSSC"], FULL + OTHER),
        (["data=pathmnist"], OTHER),
        (["teacher=WRN-16-1"], FULL + NOISE),
        (["student=wrn-16-1"], OTHER),
        (["name=noise_seed1"], ["noise_seed1"]),
        ([" seed = 0 ", "method=fssc"], ["full-method_seed0", "other_seed0"]),
        (["variant=noise", "seed=1"], ["noise_seed1"]),
    ],
)
def test_select(runs, only, names):
    assert [run.name for run in select(runs, only)] == names


@pytest.mark.parametrize(
    ("only", "message"),
    [
        (["sed=0"], "no key called 'sed'. Did you mean 'seed'"),
        (["varaint=noise"], "Did you mean 'variant'"),
        (["size=28"], "no key called 'size'"),
        (["seed"], "'seed' is not a condition: write seed=0"),
        ([""], "'' is not a condition"),
        (["=0"], "no key called ''"),
        (["seed=2"], "no seed called '2'.* Known: 0, 1, 10"),
        (["seed=-1"], "no seed called '-1'"),
        (["seed=00"], "no seed called '00'"),
        (["seed=="], "no seed called '='"),
        (["variant=full-methd"], "Did you mean 'full-method'"),
        (["VARIANT=FULL-METHD"], "Did you mean 'full-method'"),
        (["method=nois"], "Did you mean 'noise'"),
        (["teacher=wrn-16-3"], "Did you mean 'wrn-16-[12]'"),
        (["variant=noise", "method=fssc"], "no method called 'fssc'.* Known: noise"),
    ],
)
def test_select_refuses_and_offers_the_nearest(runs, only, message):
    with pytest.raises(InputError, match=message):
        select(runs, only)


# --- The shipped files ---------------------------------------------------------------------------

SHIPPED = sorted(EXPERIMENTS.glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_files_read(path):
    runs = read_experiment(path)
    said = safe_load(path.read_text(encoding="utf-8"))
    count = len(said.get("cells", [0])) * len(said["seeds"])
    for values in said.get("grid", {}).values():
        count *= len(values)
    assert len(runs) == len({run.name for run in runs}) == count
    assert {run.experiment for run in runs} == {path.stem}


def test_shipped_ablations_by_hand():
    assert len(SHIPPED) >= 3
    runs = read_experiment("table5-digits")
    assert [run.seed for run in runs] == [0, 1, 2, 3, 4] * 5
    full, dcgan, plain, blind, peaceful = (
        replace(run, teach=replace(run.teach, seed=0)) for run in runs[::5]
    )
    assert [run.variant for run in runs[::5]] == [
        "full-method",
        "standard-dcgan-generator-with-meta-learning",
        "attention-generator-without-meta-learning",
        "without-msarc",
        "without-adversarial-distillation",
    ]
    method = full.method
    assert method == LITE.method
    assert dcgan.method == replace(method, generator=replace(method.generator, attention=None))
    assert plain.method == replace(method, meta=replace(method.meta, kind="none"))
    assert blind.method == replace(method, beta=0.0)
    assert peaceful.method == replace(method, adversarial_weight=0.0)


def test_shipped_lambdas_by_hand():
    runs = read_experiment("table6-digits")
    assert [run.variant for run in runs[::5]] == [
        "lam=0.01", "lam=0.03", "lam=0.05", "lam=0.07", "lam=0.09",
    ]  # fmt: skip
    lambdas = [run.method.generator.attention.lam for run in runs]
    assert lambdas == [lam for lam in (0.01, 0.03, 0.05, 0.07, 0.09) for _ in range(5)]


def test_shipped_table_4_by_hand():
    runs = read_experiment("table4-28px")
    assert [(run.data, run.size) for run in runs] == [("pneumoniamnist", 28)] * 6
    assert [(run.teacher, run.student) for run in runs[::3]] == [
        ("wrn-40-2", "wrn-40-1"),
        ("wrn-16-1", "wrn-16-1"),
    ]
    first = runs[0]
    assert first.paper["accuracy"] == pytest.approx(0.7853)
    assert first.paper["differs"] == "28 px, not 224" and runs[3].paper is None
    assert first.method.class_weight == 5.0 and first.method.meta.steps == 4
