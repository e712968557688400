"""Assignment 3."""

from mistakes import Mistake

GENERATOR = """\
    clone, losses = copy.deepcopy(generator), []
    optimiser = torch.optim.SGD(clone.parameters(), lr=eta)
    for _ in range(steps):
        optimiser.zero_grad()
        value = loss(clone(z))
        value.backward()
        optimiser.step()
        losses.append(value.item())
    return dict(clone.named_parameters()), losses"""

FUNCTIONAL = """\
    weights, losses = {n: p.detach().clone() for n, p in generator.named_parameters()}, []
    for _ in range(steps):
        weights = {n: w.detach().requires_grad_() for n, w in weights.items()}
        value = loss(torch.func.functional_call(generator, weights, (z,)))
        gradients = torch.autograd.grad(value, list(weights.values()))
        weights = {n: w - eta * g for (n, w), g in zip(weights.items(), gradients)}
        losses.append(value.item())
    return {n: w.detach() for n, w in weights.items()}, losses"""

MISTAKES = [
    Mistake(
        "start changed in place",
        "adapted = theta.detach().clone().requires_grad_()",
        "adapted = theta.detach().requires_grad_()",
        {"q1": 2},
        "the start `theta` was changed",
    ),
    Mistake(
        "adapted weights not detached",
        "return adapted.detach()",
        "return adapted",
        {"q1": 2},
        "is a `detach` missing",
    ),
    Mistake(
        "first-order gradient at the start",
        "point = check.adapt(loss, theta, eta, steps).requires_grad_()",
        "point = theta.detach().clone().requires_grad_()",
        {"q2": 2},
        "the gradient at the start",
    ),
    Mistake(
        "create_graph forgotten",
        "torch.autograd.grad(loss(adapted), adapted, create_graph=True)",
        "torch.autograd.grad(loss(adapted), adapted)",
        {"q3": 3},
        "first-order",
    ),
    Mistake(
        "only the last inner step counts",
        "        (gradient,) = torch.autograd.grad(loss(adapted), adapted, create_graph=True)",
        "        adapted = start = adapted.detach().requires_grad_()\n"
        "        (gradient,) = torch.autograd.grad(loss(adapted), adapted, create_graph=True)",
        {"q3": 2},
        "only the last inner step",
    ),
    Mistake(
        "exact gradient of the loss at the start",
        "return torch.autograd.grad(loss(adapted), start)[0]",
        "return torch.autograd.grad(loss(start), start)[0]",
        {"q3": 3},
        "the gradient at the start",
    ),
    Mistake(
        "sum over the tasks",
        "torch.stack(gradients).mean(0)",
        "torch.stack(gradients).sum(0)",
        {"q4": 2},
        "the sum over the tasks",
    ),
    Mistake(
        "inner steps with the outer learning rate",
        "meta_gradient(loss, theta, eta, steps) for loss",
        "meta_gradient(loss, theta, outer_lr, steps) for loss",
        {"q4": 2},
        "the outer learning rate in the inner steps",
    ),
    Mistake(
        "sign of Reptile swapped",
        "return theta + outer_lr * (adapted - theta).mean(0)",
        "return theta - outer_lr * (adapted - theta).mean(0)",
        {"q5": 2},
        "the other way round",
    ),
    Mistake(
        "the generator itself adapts",
        "clone, losses = copy.deepcopy(generator), []",
        "clone, losses = generator, []",
        {"q6": 3},
        "the weights of the generator itself were changed",
    ),
    Mistake(
        "batch-norm averages leak",
        GENERATOR,
        FUNCTIONAL,
        {"q6": 3},
        "the batch-norm averages of the generator itself were changed",
    ),
    Mistake(
        "old gradients kept",
        "        optimiser.zero_grad()\n",
        "",
        {"q6": 4},
        "zero_grad",
    ),
]
