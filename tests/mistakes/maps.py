"""Assignment 4."""

from mistakes import Mistake

SCORE = "score = logits.gather(1, classes[:, None]).sum()"

MISTAKES = [
    Mistake(
        "weights of the wrong row",
        "w = weight[classes]",
        "w = weight[: len(classes)]",
        {"q1": 2},
        "the row of the image's number",
    ),
    Mistake(
        "mean over the channels",
        "return (w[:, :, None, None] * features).sum(1)",
        "return (w[:, :, None, None] * features).mean(1)",
        {"q1": 2},
        "Eq. 10 has a sum",
    ),
    Mistake(
        "probability for the logit",
        SCORE,
        "score = logits.softmax(1).gather(1, classes[:, None]).sum()",
        {"q2": 3},
        "the softmax's probability",
    ),
    Mistake(
        "class that the network names",
        SCORE,
        "score = logits.max(1).values.sum()",
        {"q2": 3},
        "the class that the network names itself",
    ),
    Mistake(
        "sum over the places",
        "return gradient.mean((2, 3))",
        "return gradient.sum((2, 3))",
        {"q2": 3},
        "Grad-CAM takes the mean",
    ),
    Mistake(
        "gradient times activation",
        "return gradient.mean((2, 3))",
        "return (gradient * features.detach()).mean((2, 3))",
        {"q2": 3},
        "Eq. 13 as printed",
    ),
    Mistake(
        "graph not kept",
        "gradient = torch.autograd.grad(score, features, retain_graph=True)[0]",
        "gradient = torch.autograd.grad(score, features)[0]",
        {"q2": 3},
        "retain_graph=True",
    ),
    Mistake(
        "ReLU left out",
        'return torch.einsum("bp,bphw->bhw", alpha, features).relu()',
        'return torch.einsum("bp,bphw->bhw", alpha, features)',
        {"q3": 2},
        "no ReLU",
    ),
    Mistake(
        "places repeated",
        'return F.interpolate(maps[:, None], size, mode="bilinear", align_corners=False)[:, 0]',
        "return F.interpolate(maps[:, None], size)[:, 0]",
        {"q4": 2},
        "not bilinear",
    ),
    Mistake(
        "maps not resized",
        "student_map = check.resize(student_map, teacher_map.shape[1:])",
        "",
        {"q5": 2},
        "once the student's has the size of the teacher's",
    ),
    Mistake(
        "teacher's map resized",
        "student_map = check.resize(student_map, teacher_map.shape[1:])",
        "teacher_map = check.resize(teacher_map, student_map.shape[1:])",
        {"q5": 2},
        "the teacher's map resized to the student's",
    ),
    Mistake(
        "sum of squares",
        "return (student_map - teacher_map).square().mean()",
        "return (student_map - teacher_map).square().sum()",
        {"q5": 2},
        "Eq. 15 has a mean",
    ),
    Mistake(
        "student's own class",
        "ours = check.stage_maps(student, images, classes)[-len(alphas) :]",
        "ours = check.stage_maps(student, images, student(images).argmax(1))[-len(alphas) :]",
        {"q6": 3},
        "the student's own class",
    ),
    Mistake(
        "alpha forgotten",
        "loss = loss + a * check.map_distance(s, t.detach())",
        "loss = loss + check.map_distance(s, t.detach())",
        {"q6": 3},
        "all α = 1",
    ),
    Mistake(
        "teacher's map not detached",
        "loss = loss + a * check.map_distance(s, t.detach())",
        "loss = loss + a * check.map_distance(s, t)",
        {"q6": 1},
        "what has to be a constant",
    ),
    Mistake(
        "student's map detached as well",
        "loss = loss + a * check.map_distance(s, t.detach())",
        "loss = loss + a * check.map_distance(s.detach(), t.detach())",
        {"q6": 1},
        "is something detached",
    ),
]
