"""Assignment 2."""

from mistakes import Mistake

MISTAKES = [
    Mistake(
        "softmax over each row",
        "return scores.flatten(2).softmax(2).view_as(scores)",
        "return scores.softmax(3)",
        {"q1": 2},
        "over each row",
    ),
    Mistake(
        "softmax over the channels",
        "return scores.flatten(2).softmax(2).view_as(scores)",
        "return scores.softmax(1)",
        {"q1": 2},
        "over the channels",
    ),
    Mistake(
        "softmax over the batch as well",
        "return scores.flatten(2).softmax(2).view_as(scores)",
        "return scores.flatten().softmax(0).view_as(scores)",
        {"q1": 2},
        "over the batch and all places",
    ),
    Mistake(
        "unpooling is not told the size",
        "return F.max_unpool2d(pooled, places, 2, output_size=features.shape[-2:])",
        "return F.max_unpool2d(pooled, places, 2)",
        {"q2": 3},
        "output_size",
    ),
    Mistake(
        "upsampling for unpooling",
        "return F.max_unpool2d(pooled, places, 2, output_size=features.shape[-2:])",
        "return F.interpolate(pooled, features.shape[-2:])",
        {"q2": 3},
        "in all four places",
    ),
    Mistake(
        "ReLU left out",
        "return nn.Sequential(conv, nn.BatchNorm2d(hidden), nn.ReLU())",
        "return nn.Sequential(conv, nn.BatchNorm2d(hidden))",
        {"q3": 3},
        "no ReLU",
    ),
    Mistake(
        "features not added",
        "return self.lam * (self.attend(features) * features) + features",
        "return self.lam * (self.attend(features) * features)",
        {"q3": 4},
        "no features added",
    ),
    Mistake(
        "weights detached",
        "return self.lam * (self.attend(features) * features) + features",
        "return self.lam * (self.attend(features).detach() * features) + features",
        {"q3": 1},
        "is something detached",
    ),
    Mistake(
        "unpooling in the module is not told the size",
        "back = F.max_unpool2d(up, places, 2, output_size=psi.shape[-2:])",
        "back = F.max_unpool2d(up, places, 2)",
        {"q3": 1},
        "odd",
    ),
    Mistake(
        "the features' own gradient detached",
        "return self.lam * (self.attend(features) * features) + features",
        "return self.lam * (self.attend(features.detach()) * features) + features",
        {"q3": 1},
        "is something detached",
    ),
    Mistake(
        "λ over the number of places",
        "return ((module(features) - features).norm() / features.norm()).item()",
        "return module.lam / features[0, 0].numel()",
        {"q4": 2},
        "as if all weights were alike",
    ),
    Mistake(
        "squared norms",
        "return ((module(features) - features).norm() / features.norm()).item()",
        "return ((module(features) - features).square().sum() / features.square().sum()).item()",
        {"q4": 2},
        "the squares of the norms",
    ),
    Mistake(
        "rule of three upside down",
        "return module.lam * share / check.relative_change(module, features)",
        "return check.relative_change(module, features) / (module.lam * share)",
        {"q5": 2},
        "upside down",
    ),
]
