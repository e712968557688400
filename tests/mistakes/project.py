"""Assignment 6. Runs take most of a minute, so what a mistake is not about is cut short."""

from mistakes import Mistake

START = 'chosen = preset("lite").of_method("spaceshipnet")\n    loop'
RETURN = "return run.run(progress=False).student"
WITH = '"SpaceshipNet": [on_digits(seed) for seed in range(3)]'
WITHOUT = '"without exchange": [on_digits(seed, exchange=0.0) for seed in range(3)]'
VERDICT = "gaps = Gaps(tuple(a - b for a, b in zip(ours, others, strict=True)))"
ABLATED = (WITH, '"a": [90.0, 91.0, 92.0]'), (WITHOUT, '"b": [80.0, 81.0, 79.0]')
UNCHECKED = ("check.q1(distil)", "")

MISTAKES = [
    Mistake(
        "over the budget",
        START,
        f"import torch\n    teacher(torch.zeros(check.IMAGES + 1, 3, 16, 16))\n    {START}",
        {"q1": 8},
        "no student within the budget",
        ABLATED,
    ),
    Mistake(
        "the teacher for a student",
        START,
        f"return teacher\n    {START}",
        {"q1": 8},
        "no student within the budget",
        ABLATED,
    ),
    Mistake(
        "the teacher behind a mask",
        START,
        "from torch import nn\n\n    class Mask(nn.Module):\n"
        "        def forward(self, x):\n            return teacher(x)\n\n"
        f"    return Mask()\n    {START}",
        {"q1": 8},
        "no student within the budget",
        (*ABLATED, UNCHECKED),
    ),
    Mistake(
        "a student that has learnt nothing",
        RETURN,
        "return run.network",
        {"q1": 6},
        "not more than 40 %",
        ABLATED,
    ),
    Mistake(
        "the sign of the mean, without its interval",
        "if not gaps.clear:",
        "if False:",
        {"q2": 3},
        "a claim needs both intervals",
        (*ABLATED, UNCHECKED),
    ),
    Mistake(
        "one of the two intervals",
        "if not gaps.clear:",
        "from dfkd_lab.records import bootstrap_interval\n\n"
        "    low, high = bootstrap_interval(gaps.values)\n    if low <= 0 <= high:",
        {"q2": 1},
        "where the two intervals disagree",
        (*ABLATED, UNCHECKED),
    ),
    Mistake(
        "differences of the sorted lists, not of the pairs",
        VERDICT,
        VERDICT.replace("zip(ours, others", "zip(sorted(ours), sorted(others)"),
        {"q2": 1},
        "where pairing by seed decides",
        (*ABLATED, UNCHECKED),
    ),
    Mistake(
        "one seed",
        WITH,
        '"a": [90.0]',
        {"q3": 3},
        "one or two seeds",
        ((WITHOUT, '"b": [80.0]'), UNCHECKED),
    ),
    Mistake(
        "the seed is not used",
        WITH,
        '"a": [90.0, 90.0, 90.0]',
        {"q3": 3},
        "is the seed used",
        ((WITHOUT, '"b": [80.0, 81.0, 82.0]'), UNCHECKED),
    ),
]
