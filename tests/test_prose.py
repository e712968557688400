"""Numbers in the prose: each that was measured, recorded or published is recomputed, and compared
with its sentence. A number that an output prints is better left out of the sentence."""

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy import integrate, stats

from dfkd_lab.records import (
    Gaps,
    claims,
    holm,
    paired,
    paper_table,
    read_records,
    read_variants,
    t_interval,
)
from dfkd_lite.networks import build, count_parameters

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
PAGES = [*sorted(BOOK.glob("*.ipynb")), *(BOOK / f"{n}.md" for n in ("index", "course"))]
PAGES.append(BOOK / "course-instructors.md")


@cache
def prose(page: str) -> str:
    """The text of a page on one line, without code and displayed formulas."""
    path = next(path for path in PAGES if path.stem == page)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        found = [c for c in json.loads(text)["cells"] if c["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in found)
    text = re.sub(r"(?s)```.*?```|\$\$.*?\$\$", "", text)
    return " ".join(text.split())


# --- what the sentences are compared with ---------------------------------------------------------

COUNTS = dict(enumerate(
    ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
     "eleven", "twelve")
))  # fmt: skip


def percent(record, role="student"):
    return 100 * record["last"][role]["accuracy"]


def column(table, name, **where):
    """Numbers of a column of a paper's table, of the rows that have the given values."""
    rows = [r for r in paper_table(table) if all(r[key] == value for key, value in where.items())]
    return [float(row[name]) for row in rows if row[name]]


def size(points):
    """How the book calls differences of that size, all of them."""
    points = np.abs(np.atleast_1d(points))
    for words, low, high in (
        ("tenths of a point", 0.0, 0.95),
        ("several points", 2.0, 10.0),
        ("tens of points", 10.0, 100.0),
    ):
        if (low <= points).all() and (points < high).all():
            return words
    return f"{points.min():.2f} to {points.max():.2f} points"


def near(value, words, target, by=0.1):
    """``words`` if the value is within a share of the target, else the value."""
    return words if abs(value - target) <= by * target else f"{value:.2f}"


def seeds(gaps, holds):
    """Count the seeds for which something holds: in words, or "every"."""
    n = sum(holds(gap) for gap in gaps)
    return "every" if n == len(gaps) else COUNTS[n]


def temperature_one():
    gaps = paired("temperature-1", "lite").values
    return seeds(gaps, lambda gap: gap < 0), size(min(gaps))


def temperatures():
    ends = [t_interval(paired(f"temperature-{tau}", "lite").values) for tau in (4, 100)]
    return "a point" if round(np.abs(ends).max()) == 1 else f"{np.abs(ends).max():.1f} points"


READINGS = ("lite", "attention-per-channel", "attention-channel", "attention-rescaled",
            "attention-rescaled-1")  # fmt: skip


def readings_ahead():
    ahead = max(sum(g > 0 for g in paired(n, "attention-none").values) for n in READINGS)
    return "a seed or two" if ahead in (1, 2) else COUNTS[ahead]


def readings_size():
    means = [np.mean(paired(name, "attention-none").values) for name in READINGS]
    assert abs(means[-1]) > max(np.abs(means[:-1])), "the reading with most weight loses most"
    return size(means[:-1])


LAMBDA = ("CIFAR-10", "CIFAR-100", "Tiny-ImageNet")


def lambda_ranges():
    values = [column("table6_lambda", name) for name in LAMBDA]
    return COUNTS[len(values[0])], size([np.ptp(v) for v in values])


def lambda_rises():
    lams = column("table6_lambda", "lambda")
    peaks = {int(np.argmax(column("table6_lambda", name))) for name in LAMBDA}
    assert len(peaks) == 1, "the columns have their maxima at different values"
    (peak,) = peaks
    for values in (column("table6_lambda", name) for name in LAMBDA):
        assert (np.diff(values[: peak + 1]) > 0).all() and (np.diff(values[peak:]) < 0).all()
    return f"{lams[0]:g}", f"{lams[peak]:g}"


def as_far_as_chance():
    """The range of Table 6 on CIFAR-100, over that of as many draws with the published spread."""
    (published,) = column("others_published", "spread")
    normal = np.random.default_rng(0).normal(0, published, (50_000, 5))
    ratio = np.ptp(column("table6_lambda", "CIFAR-100")) / np.ptp(normal, axis=1).mean()
    return near(ratio, "as far as", 1)


def without(variant):
    """What the paper's Table 5 says a part is worth, in points, on its three data sets."""
    (full,) = (r for r in paper_table("table5_ablation") if r["variant"] == "full method")
    (row,) = (r for r in paper_table("table5_ablation") if r["variant"] == variant)
    return [float(full[name]) - float(row[name]) for name in LAMBDA]


def meta_learning_open():
    kinds = ("lite", "meta-first-order", "meta-reptile")
    gaps = {name: paired(name, "meta-none") for name in kinds}
    return COUNTS[sum(gap.clear for gap in gaps.values())]


def shortcut(name, base, exam, experiment="shortcut"):
    return [100 * (r["last"][name][exam] - r["last"][base][exam]) for r in read_records(experiment)]


def trap_over_spread():
    betas = ("0.01", "0.1", "0.3", "1")
    gaps = [shortcut(f"planted, beta {b}", "planted, beta 0", "lying") for b in betas]
    ratios = [np.mean(g) / np.std(g, ddof=1) for g in gaps]
    return "several times" if min(ratios) > 2 else f"{min(ratios):.1f} times"


def controls():
    return COUNTS[len(read_records("shortcut-controls"))]


KAPPAS_AND_BETAS = [f"kappa-{k}" for k in ("0", "0.01", "0.1", "0.3", "3", "10")]
KAPPAS_AND_BETAS += [f"beta-{b}" for b in ("0", "0.01", "0.3", "1", "3")]


def clear_kappas():
    gaps = {name: paired(name) for name in KAPPAS_AND_BETAS}
    assert [n for n, g in gaps.items() if g.clear] == ["kappa-0", "kappa-10"]
    assert min(holm(gaps).values()) > 0.05
    images = read_variants(["lite"])["lite"][0]["data"]["test_images"]
    of_one = [abs(gap - 100 / images) < 1e-6 for gap in gaps["kappa-10"].values]
    return COUNTS[sum(of_one)], size(gaps["kappa-0"].values), COUNTS[len(of_one)]


def between():
    """The differences of the betas and kappas between the ends, in the mean over seeds."""
    names = ("kappa-0.01", "kappa-0.1", "kappa-0.3", "kappa-3", "beta-0.01", "beta-0.3")
    return size([np.mean(paired(name).values) for name in names])


def noise_and_xrays():
    records = read_records("pneumoniamnist")
    ahead = sum(percent(r, "noise") > percent(r) for r in records)
    return COUNTS[ahead], COUNTS[len(records)]


def auc_apart():
    records = read_records("pneumoniamnist")
    apart = sum(r["last"]["student"]["auc"] > r["last"]["noise"]["auc"] for r in records)
    return f"each of the {COUNTS[apart]}" if apart == len(records) else COUNTS[apart]


def by_seed(variant):
    records = read_variants([variant], "table5-digits")[variant]
    return np.array([percent(record) for record in records])


def paired_spread():
    plain, whole = by_seed("without-msarc"), by_seed("full-method")
    unrelated = np.hypot(plain.std(ddof=1), whole.std(ddof=1))
    return near((plain - whole).std(ddof=1) / unrelated, "half", 0.5, by=0.2)


def few_images():
    images = read_variants(["full-method"], "table5-digits")["full-method"][0]["data"]
    step = 100 / images["test_images"]
    counts = np.abs(by_seed("without-msarc") - by_seed("full-method")) / step
    return "one or two" if np.mean(counts.round() <= 2) > 0.5 else f"{np.median(counts):.0f}"


def all_on_one_side():
    """Seeds needed so that all ahead is rarer than 5 %, and the chance with five."""
    needed = next(n for n in range(2, 20) if 2 * 0.5**n < 0.05)
    return f"{100 * 2 * 0.5**5:.1f} %", COUNTS[needed]


def looks():
    parts = len(paper_table("table5_ablation")) - 1
    lams = len(paper_table("table6_lambda")) - 1
    return COUNTS[parts], COUNTS[lams], COUNTS[parts + lams], COUNTS[parts + lams]


@cache
def methods(experiment="methods-digits"):
    """Accuracies in % of each method of chapter 14, by seed."""
    found: dict[str, dict[int, float]] = {}
    for record in read_records(experiment):
        found.setdefault(record["networks"]["method"], {})[record["seed"]] = percent(record)
    return found


def against(other, experiment="methods-digits"):
    """Gaps to another method, and those of them that are clear after Holm's correction."""
    runs = methods(experiment)
    gaps = {
        n: Gaps(tuple(right[s] - runs[other][s] for s in sorted(right)))
        for n, right in runs.items()
        if n not in (other, "noise")
    }
    return gaps, [n for n, claimed in claims(gaps).items() if claimed]


def better_than_noise():
    gaps, clear = against("noise")
    return COUNTS[len(gaps) - len(clear)], COUNTS[sum(g < 0 for g in gaps["dfad"].values)]


def nayer():
    gap = np.mean(against("fssc")[0]["nayer"].values)
    return "less than a point" if -1 < gap < 0 else f"{gap:.1f} points"


def xrays_open():
    gaps, clear = against("noise", "methods-28px")
    (n,) = {len(gap.values) for gap in gaps.values()}
    return COUNTS[n], "none" if not clear else COUNTS[len(clear)]


def fssc_by_time():
    long, short = methods("methods-digits-time")["fssc"], methods()["fssc"]
    images = read_records("methods-digits")[0]["data"]["test_images"]
    lost = [round((short[seed] - long[seed]) * images / 100) for seed in long]
    return f"{COUNTS[min(lost)]} to {COUNTS[max(lost)]}"


def timed_comparisons():
    return COUNTS[len(methods("methods-digits-time"))]


def best_and_teacher():
    lost = []
    for experiment in ("methods-digits", "methods-digits-time"):
        records = read_records(experiment)
        best = max(methods(experiment), key=lambda n: np.mean([*methods(experiment)[n].values()]))
        runs = [r for r in records if r["networks"]["method"] == best]
        lost.append(np.mean([percent(r, "teacher") - percent(r) for r in runs]))
    return "a point" if max(lost) < 1 else f"{max(lost):.1f} points"


def steps(experiment, **networks):
    record = next(r for r in read_records(experiment) if networks.items() <= r["networks"].items())
    loop = record["settings"]["distill"]
    return (loop["episodes"] - loop["warm_up"]) * loop["student_steps"]


def more_steps():
    ratio = steps("table4-28px", teacher="wrn-16-1") / steps("methods-28px", method="fssc")
    return near(ratio, "three and a half times", 3.5)


def jpeg_steps():
    ratio = steps("cifar10-jpeg-longer") / steps("cifar10-jpeg")
    return "More than twice" if 2 < ratio < 3 else f"{ratio:.1f} times"


def warm_up():
    seen = {}
    for record in read_records("methods-digits"):
        loop = record["settings"]["distill"]
        seen[record["networks"]["method"]] = loop["episodes"] - loop["warm_up"], loop["episodes"]
    return f"{100 * max(whole / taught - 1 for taught, whole in seen.values()):.0f} %"


def users():
    rows = [r for r in paper_table("others_published") if "users" in r["note"]]
    with_teacher = sum(bool(row["teacher_accuracy"]) for row in rows)
    dafl = [r for r in rows if r["source"] == "DAFL" and "re-implementation" in r["note"]]
    return near(with_teacher / len(rows), "half", 0.5, by=0.01), COUNTS[len(dafl)]


def lower_bound():
    rows = [r for r in paper_table("others_published") if r["note"].endswith("above this")]
    (row,) = rows
    return row["accuracy"]


def spreads():
    """Standard deviations of the same method on the digits, in the experiments that have it."""
    ours = {"digits": None, "variants": "lite", "table5-digits": "full-method",
            "methods-digits": "fssc"}  # fmt: skip
    values = [
        [percent(r) for r in read_records(name) if variant in (None, r.get("variant"))]
        for name, variant in ours.items()
    ]
    return [len(v) for v in values], [np.std(v, ddof=1) for v in values]


def four_spreads():
    counts, found = spreads()
    (n,) = set(counts)
    ratio = near(max(found) / min(found), "three", 3)
    return COUNTS[len(found)], COUNTS[n], COUNTS[len(found)], ratio


def margins():
    """The paper's number minus the best other one of the row, in all its tables."""
    names = {"dataset", "teacher", "student", "resolution", "classes", "paper"}
    names |= {"teacher_accuracy", "student_accuracy_with_data"}
    tables = ("table2_benchmark", "table3_high_resolution", "table4_medical")
    rows = [row for table in tables for row in paper_table(table)]
    best = [max(float(v) for k, v in row.items() if k not in names and v) for row in rows]
    return [float(row["paper"]) - other for row, other in zip(rows, best, strict=True)]


def margins_below():
    _, found = spreads()
    found += column("others_published", "spread")
    below = sorted(np.mean([abs(m) < spread for m in margins()]) for spread in found)
    return near(below[0], "a third", 1 / 3), "most" if below[-1] > 0.75 else f"{below[-1]:.2f}"


def fast_minus_ablated():
    fast = column("others_published", "accuracy", source="FastDFKD")
    (ablated,) = column("table5_ablation", "CIFAR-10", variant="without MSARC")
    generator = size(without("standard DCGAN generator with meta-learning"))
    return generator, size([number - ablated for number in fast])


def module_in_two_experiments():
    plain = "standard-dcgan-generator-with-meta-learning"
    first = paired("lite", "attention-none")
    second = paired("full-method", plain, experiment="table5-digits")
    assert not first.clear and not second.clear
    return tuple("ahead" if np.mean(gap.values) > 0 else "behind" for gap in (first, second))


def best_of_eight():
    """Expected largest of eight normal draws, and its lead over the second."""

    def mean_of(order):  # of the order-th smallest, from its density
        return integrate.quad(lambda x: x * dense(x, order), -9, 9)[0]

    def dense(x, order):
        return stats.beta(order, 9 - order).pdf(stats.norm.cdf(x)) * stats.norm.pdf(x)

    first, second = mean_of(8), mean_of(7)
    lead = first - second
    return COUNTS[16 // 8], f"{first:.1f}", f"{lead:.2f}", f"{0.5 * lead:.2f}"


def half_the_parameters():
    student, teacher = (count_parameters(build(n, 10, 1, 16)) for n in ("wrn-10-1", "wrn-16-1"))
    return "less than half" if student < teacher / 2 else f"{student / teacher:.0%}"


# --- the inventory --------------------------------------------------------------------------------

# page, sentence with {} where a function's words go, function
CLAIMS: list[tuple[str, str, Callable]] = [
    ("01-quickstart", "a student with {} of its parameters learns", half_the_parameters),
    (
        "02-distillation",
        "$\\tau = 1$ fell behind in {} seed, in one of them by {};",
        temperature_one,
    ),
    ("02-distillation", "the temperature moves the mean by about {} at most", temperatures),
    ("04-generator", "no reading is ahead in more than {}.", readings_ahead),
    ("04-generator", "The gaps are {}; only the reading with most weight", readings_size),
    ("04-generator", "orders {} values of $\\lambda$ by differences of a few {},", lambda_ranges),
    ("05-meta-learning", "On the digits {} kind can be told from `none`", meta_learning_open),
    ("07-msarc", "paired by seed, is {} its spread", trap_over_spread),
    (
        "07-msarc",
        "even costs a little, in {} seed;",
        lambda: seeds(shortcut("clean, beta 0.1", "clean, beta 0", "without"), lambda gap: gap < 0),
    ),
    ("07-msarc", "which {} seeds and so many comparisons leave open", controls),
    ("07-msarc", "a loss of {} without MSARC", lambda: size(without("without MSARC"))),
    ("07-msarc", "their MSE is {} times the mean square", lambda: f"{(10 - 1) ** 2}"),
    (
        "08-adversarial-loop",
        "one test image in {} of the seeds, the other is {} in each of them; corrected for so many "
        "comparisons, {} seeds leave neither",
        clear_kappas,
    ),
    (
        "08-adversarial-loop",
        "other seeds that we recorded lose {} (",
        lambda: size(np.median(paired("fail-no-batch-norm-loss").values)),
    ),
    ("08-adversarial-loop", "in between, on the digits, differences are {}", between),
    ("11-medical", "apart in {} seeds", auc_apart),
    ("11-medical", "noise came out ahead on {} seed of {},", noise_and_xrays),
    ("12-ablations", "the differences spread about {} as much as", paired_spread),
    ("12-ablations", "most of these differences are {} images", few_images),
    ("12-ablations", "values of $\\lambda$ on CIFAR-100 spread {} five seeds", as_far_as_chance),
    ("12-ablations", "columns all rise from {} to {} and then fall", lambda_rises),
    ("12-ablations", "not enough for this test: {}. It needs {}.", all_on_one_side),
    (
        "12-ablations",
        "Table 5 has {} ablations and Table 6 {} other values of $\\lambda$: {} differences",
        lambda: looks()[:3],
    ),
    ("12-ablations", "looking {} times is not looking once", lambda: looks()[3]),
    ("13-scale", "(224 / 32)² is {}", lambda: f"{(224 / 32) ** 2:.0f}"),
    ("14-field", "(up to {} more where a method has a warm-up)", warm_up),
    (
        "14-field",
        "All but {} are clearly better than noise, on every seed. The two are games: "
        "DFAD's seeds end anywhere, {} of them below noise",
        better_than_noise,
    ),
    ("14-field", "So is NAYER, by {},", nayer),
    ("14-field", "corrected for {} comparisons, DAFL's gain", timed_comparisons),
    ("14-field", "FSSC loses on every seed ({} test images)", fssc_by_time),
    ("14-field", "the best are within {} of their teacher at either budget", best_and_teacher),
    ("14-field", "and with {} seeds {} of it is clear", xrays_open),
    ("14-field", "{} the steps, on far more images, come out ahead", more_steps),
    ("14-field", "{} the steps bring a little", jpeg_steps),
    ("15-believe", "{} of them name a teacher of their own; all of DFQ's and {} of DAFL's", users),
    ("15-believe", "only *more than {} %*:", lower_bound),
    (
        "15-believe",
        "a gap of a tenth of a point is {} images of CIFAR-10",
        lambda: COUNTS[round(0.001 * 10_000)],
    ),
    (
        "15-believe",
        "an own run of {} seeds",
        lambda: COUNTS[
            next(int(r["seeds"]) for r in paper_table("others_published") if r["seeds"])
        ],
    ),
    (
        "A-reading-notes",
        "recorded {} times with {} seeds each, has {} spreads, the largest nearly "
        "{} times the smallest",
        four_spreads,
    ),
    ("A-reading-notes", "Between {} of the margins and {} of them", margins_below),
    ("A-reading-notes", "is worth {}; and yet it lies {} *below* FastDFKD", fast_minus_ablated),
    (
        "A-reading-notes",
        "a smooth maximum at {} in all {} columns",
        lambda: (lambda_rises()[1], COUNTS[len(LAMBDA)]),
    ),
    (
        "A-reading-notes",
        "is {} the one without it in one of our experiments and {} in the other",
        module_in_two_experiments,
    ),
    (
        "A-reading-notes",
        "{} of 16, by chance alone. The best of eight normal draws lies about {} standard "
        "deviations above the mean and about {} of them above the second best: a lead of about "
        "{} points",
        best_of_eight,
    ),
]

# the same, against what a chapter printed when the book was built
LIVE: list[tuple[str, str, Callable]] = [
    ("12-ablations", "With {} seeds the bootstrap claims a difference that is not there {} as "
     "often as it promises, with {} still too often", lambda: false_claims()),
]  # fmt: skip

# page, fragment with a number and a unit, why it is nothing measured
NOT_MEASURED = [
    ("02-distillation", "its 95 % interval leaves out zero", "the level of an interval"),
    ("02-distillation", "And a point to the right", "a point of a figure"),
    ("03-inversion", "One image of each class, several times over", "how the cell is written"),
    ("05-meta-learning", "both 95 % intervals hold zero", "the level of an interval"),
    ("06-cam", "on how many images the two point at *different* places", "a verb"),
    ("07-msarc", "ten times the KL, and the plain loss for twice as long", "a setting of the runs"),
    ("07-msarc", "A map and ten times that map", "an example"),
    ("09-bound", "may stretch up to three times as much", "a theorem"),
    ("10-your-teacher", "not with 100 %", "the most there is"),
    ("11-medical", 'says "90 %" is right in nine of ten', "a definition"),
    ("11-medical", "perhaps 5 % are", "an assumption of the exercise"),
    ("12-ablations", "in 95 of 100 repetitions", "a definition"),
    ("12-ablations", "the middle 95 % of these means", "a definition"),
    ("12-ablations", "accuracies near 100 % are not normal", "the most there is"),
    ("12-ablations", "is found in four of five attempts", "a definition"),
    ("12-ablations", "twice the spread, four times the seeds", "a theorem"),
    ("12-ablations", "the *shape*, three times the same", "three columns"),
    ("12-ablations", "In a table of tenths of a point", "a figure of speech"),
    ("12-ablations", '"94.9 ± 0.1 over five evaluations', "invented for the exercise"),
    ("12-ablations", "evaluated five times", "invented for the exercise"),
    ("12-ablations", "to get below 5 %?", "the question"),
    ("12-ablations", "one difference be clear at 95 %", "the level of an interval"),
    ("12-ablations", "Dividing 5 % by", "the level of a test"),
    ("13-scale", "three seeds cost three times the work", "arithmetic"),
    ("14-field", "With `share=8` the cell takes several times as long", "a setting"),
    ("14-field", "each takes several times as long as", "the table beside it has the seconds"),
    ("14-field", "(its last features) as a point", "a point in space"),
    ("14-field", "in how many balls a point lies", "a point in space"),
    ("14-field", "differences of a point or less", "the solution runs it"),
    ("14-field", "B gets 400 times as many", "the exercise's own numbers"),
    ("15-believe", "A paper reports 94.9 ± 0.1,", "invented for the exercise"),
    ("15-believe", "wins in 95 % of them", "the question"),
    ("A-reading-notes", "a standard deviation of half a point", "assumed in the exercise"),
    ("A-reading-notes", "Differences of several points between two groups", "the printed lines"),
    ("course-instructors", "a submission costs at most three times", "a setting of the grader"),
    ("course-instructors", "it has 0 points, and", "a setting of the grader"),
    ("course-instructors", "another language: 0 points,", "a setting of the grader"),
    ("course-instructors", "have three points and a rubric", "a rubric"),
    ("course-instructors", "Read for the three points", "a rubric"),
    ("course-instructors", "has eight points, two for each of four lines", "a rubric"),
    ("course-instructors", "to mean about 3 % on a map", "the question"),
    ("course-instructors", "is 16 times too small", "arithmetic: 32 times 32 over 8 times 8"),
    ("course-instructors", "and 3 % it is not either", "the question"),
    ("course-instructors", "hold each pixel up to nine times", "a theorem"),
    ("course-instructors", "worth half a point. Half a point of what", "the question"),
    ("course-instructors", "how many images half a point is", "the question"),
    ("course-instructors", "entered ten times", "an example"),
    ("course-instructors", "the best of five seeds", "an example"),
    ("course-instructors", "takes three times five minutes", "a setting of the grader"),
]

NUMBER = r"(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\d[\d.,]*)"
COUNT = rf"(?:{NUMBER}|several)"
UNIT = re.compile(
    rf"\d[\d.,]*\*? ?%|± ?\d|\b{NUMBER} of \d+|\b{NUMBER} of (?:the )?{NUMBER} (?:seeds|attempts)"
    rf"|\b(?:of|in|for) {NUMBER} seeds|\b{COUNT} times\b|\b(?:a|{COUNT}) points?\b"
)


def false_claims():
    executed = ROOT / "_build" / "executed" / "12-ablations.ipynb"
    printed = executed.read_text(encoding="utf-8")
    rates = {int(n): int(r) for n, r in re.findall(r"n = +(\d+): bootstrap (\d+)%", printed)}
    often = "several times" if rates[3] >= 3 * 5 else f"{rates[3] / 5:.1f} times"
    return "three", often, "five" if 5 < rates[5] < rates[3] else "no"


def short(value):
    """Name a test by its page and sentence: a function's name would hold its address."""
    return value[:40] if isinstance(value, str) else None


@cache
def sentence(says: str, value: Callable) -> str:
    words = value()
    return says.format(*((words,) if isinstance(words, str) else words))


@pytest.mark.parametrize(("page", "says", "value"), CLAIMS, ids=short)
def test_a_number_in_the_prose_is_what_the_data_say(page, says, value):
    wanted = sentence(says, value)
    assert wanted in prose(page), f"{page}: recomputed, the sentence is '{wanted}'"


@pytest.mark.book
@pytest.mark.parametrize(("page", "says", "value"), LIVE, ids=short)
def test_a_number_in_the_prose_is_what_the_chapter_printed(page, says, value):
    assert sentence(says, value) in prose(page)


def spans(page: str) -> list[tuple[int, int]]:
    """Where on a page the sentences of the inventory and the exceptions stand."""
    text, found = prose(page), []
    known = [sentence(says, value) for p, says, value in CLAIMS if p == page]
    for says in [says for p, says, _ in LIVE if p == page]:
        pattern = "(.+?)".join(re.escape(part) for part in says.split("{}"))
        known += [match.group() for match in re.finditer(pattern, text)]
    known += [fragment for p, fragment, _ in NOT_MEASURED if p == page]
    for fragment in known:
        at = text.find(fragment)
        assert at >= 0, f"{page}: '{fragment}' is gone; take it off the list"
        found.append((at, at + len(fragment)))
    return found


@pytest.mark.parametrize("page", [path.stem for path in PAGES])
def test_no_number_with_a_unit_is_left_out_of_the_inventory(page):
    """Add a claim with the function that recomputes it, or better: leave the number out."""
    text, known = prose(page), spans(page)
    left = [
        text[max(0, match.start() - 40) : match.end() + 40]
        for match in UNIT.finditer(text)
        if not any(first < match.end() and match.start() < last for first, last in known)
    ]
    assert left == []


def test_findings_about_public_code_can_be_looked_up():
    rows = paper_table("public_code")
    for row in rows:
        assert all(row.values()) and re.fullmatch(r"[0-9a-f]{40}", row["commit"]), row
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", row["repository"]), row
        assert re.fullmatch(r"\d+(?: and \d+)?", row["lines"]), row
    assert len({(r["repository"], r["file"], r["lines"]) for r in rows}) == len(rows)
