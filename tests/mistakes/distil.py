"""Assignment 1."""

from mistakes import Mistake

MISTAKES = [
    Mistake(
        "softmax over the batch",
        "return torch.softmax(logits / tau, dim=1)",
        "return torch.softmax(logits / tau, dim=0)",
        {"q1": 2},
        "over the images of the batch",
    ),
    Mistake(
        "tau squared forgotten",
        "return tau**2 * divergence.mean()",
        "return divergence.mean()",
        {"q2": 3},
        "the factor τ² left out",
    ),
    Mistake(
        "mean over images and classes",
        "divergence = (log_p.exp() * (log_p - log_q)).sum(1)",
        "divergence = F.kl_div(log_q, log_p.exp(), reduction='mean')",
        {"q2": 3},
        "the classes are summed",
    ),
    Mistake(
        "KL the wrong way round",
        "divergence = (log_p.exp() * (log_p - log_q)).sum(1)",
        "divergence = (log_q.exp() * (log_q - log_p)).sum(1)",
        {"q2": 3},
        "the wrong way round",
    ),
    Mistake(
        "logarithm of a probability of 0",
        "log_p = F.log_softmax(teacher_logits / tau, dim=1)",
        "log_p = torch.softmax(teacher_logits / tau, dim=1).log()",
        {"q2": 1},
        "very sure",
    ),
    Mistake(
        "teacher gets gradients",
        "    with torch.no_grad():\n        wanted = teacher(x)",
        "    wanted = teacher(x)",
        {"q3": 3},
        "have got gradients",
    ),
    Mistake(
        "teacher in training mode",
        "    teacher.eval()\n",
        "",
        {"q3": 4},
        "the teacher's batch-norm statistics have moved",
    ),
    Mistake(
        "student in evaluation mode",
        "    student.train()\n",
        "    student.eval()\n",
        {"q3": 3},
        "the student's batch-norm statistics have not moved",
    ),
    Mistake(
        "gradients never set to zero",
        "    optimiser.zero_grad()\n",
        "",
        {"q3": 3},
        "set to zero first",
    ),
    Mistake(
        "images not normalised",
        "x = normalise(draw(), spec)",
        "x = draw()",
        {"q4": 3},
        "not normalised",
    ),
    Mistake(
        "learning rate too small",
        "torch.optim.Adam(student.parameters(), lr=0.01)",
        "torch.optim.Adam(student.parameters(), lr=1e-5)",
        {"q4": 3},
        "learning rate",
    ),
    Mistake(
        "uniform noise",
        "z = torch.randn(count, *spec.image_shape, generator=rng)",
        "return torch.rand(count, *spec.image_shape, generator=rng)",
        {"q5": 2},
        "a uniform distribution",
    ),
    Mistake(
        "entropy of each image",
        "mean = torch.softmax(teacher.eval()(x), dim=1).mean(0)\n"
        "    return torch.special.entr(mean).sum().exp().item()",
        "p = torch.softmax(teacher.eval()(x), dim=1)\n"
        "    return torch.special.entr(p).sum(1).mean().exp().item()",
        {"q6": 2},
        "of each image by itself",
    ),
]
