"""Assignment 5."""

from mistakes import Mistake

MISTAKES = [
    Mistake(
        "Frobenius norm",
        "return (matrix @ v).norm().item()",
        "return matrix.norm().item()",
        {"q1": 2},
        "the Frobenius norm",
    ),
    Mistake(
        "eigenvalue for singular value",
        "return (matrix @ v).norm().item()",
        "return (matrix.T @ (matrix @ v)).norm().item()",
        {"q1": 2},
        "the norm is its root",
    ),
    Mistake(
        "one step only",
        "v = torch.randn(matrix.shape[1])\n    for _ in range(iterations):",
        "v = torch.randn(matrix.shape[1])\n    for _ in range(1):",
        {"q1": 2},
        "from below",
    ),
    Mistake(
        "vector not divided by its norm",
        "v = v / v.norm()",
        "pass",
        {"q1": 2},
        "divided by its norm in every step",
    ),
    Mistake(
        "no output_padding",
        "return F.conv_transpose2d(y, conv.weight, None, conv.stride, conv.padding, extra)",
        "return F.conv_transpose2d(y, conv.weight, None, conv.stride, conv.padding)",
        {"q2": 2},
        "no `output_padding`",
    ),
    Mistake(
        "kernel reshaped to a matrix",
        "return y.norm().item()",
        "return torch.linalg.matrix_norm(conv.weight.flatten(1), 2).item()",
        {"q3": 3},
        "the kernel reshaped to a matrix",
    ),
    Mistake(
        "stride ignored",
        "y = F.conv2d(x / x.norm(), conv.weight, None, conv.stride, conv.padding)\n"
        "        x = check.transposed(conv, y, size)",
        "y = F.conv2d(x / x.norm(), conv.weight, None, 1, conv.padding)\n"
        "        x = F.conv_transpose2d(y, conv.weight, None, 1, conv.padding)",
        {"q3": 2},  # the large convolution has stride 1
        "the stride ignored",
    ),
    Mistake(
        "padding ignored",
        "y = F.conv2d(x / x.norm(), conv.weight, None, conv.stride, conv.padding)",
        "y = F.conv2d(x / x.norm(), conv.weight, None, conv.stride)",
        {"q3": 3},
        "does `F.conv2d` get the stride and the padding",
    ),
    Mistake(
        "no root in the batch-norm",
        "(bn.running_var + bn.eps).sqrt()).max()",
        "(bn.running_var + bn.eps)).max()",
        {"q4": 2},
        "no root of the variance",
    ),
    Mistake(
        "no eps in the batch-norm",
        "(bn.running_var + bn.eps).sqrt()).max()",
        "bn.running_var.sqrt()).max()",
        {"q4": 2},
        "no ε",
    ),
    Mistake(
        "batch-norm as in training mode",
        "return (bn.weight.abs() / (bn.running_var + bn.eps).sqrt()).max()",
        "return bn.weight.abs().max()",
        {"q4": 2},
        "as in training mode",
    ),
    Mistake(
        "sum for product",
        "product = 1.0\n    for step in steps:",
        "return float(sum(steps))\n    for step in steps:",
        {"q4": 2},
        "the sum of the constants",
    ),
    Mistake(
        "residual block without the 1",
        "step = chain_norm(step.branch) + chain_norm(step.shortcut)",
        "step = chain_norm(step.branch)",
        {"q4": 2},
        "without the 1",
    ),
    Mistake(
        "one norm over the whole batch",
        "return (student(images) - teacher(images)).norm(dim=1)",
        "return (student(images) - teacher(images)).norm()",
        {"q5": 2},
        "over the whole batch",
    ),
    Mistake(
        "networks in training mode",
        "student.eval()\n    teacher.eval()",
        "pass",
        {"q5": 2},
        "in training mode",
    ),
    Mistake(
        "mean over the batch for the largest",
        "delta = (images - images_star).flatten(1).norm(dim=1).max()",
        "delta = (images - images_star).flatten(1).norm(dim=1).mean()",
        {"q5": 3},
        "the mean of ‖G(z) − G*(z)‖",
    ),
    Mistake(
        "student and teacher move together",
        "-lip_teacher * torch.outer(e, u)",
        "lip_teacher * torch.outer(e, u)",
        {"q6": 2},
        "move the same way",
    ),
]
