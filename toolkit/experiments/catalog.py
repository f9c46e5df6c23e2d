"""The experiments by name, in the order of the notes; a module is loaded when its experiment is run."""

from __future__ import annotations

EXPERIMENTS: dict[str, tuple[str, str]] = {
    "regularization": ("toolkit.experiments.regularization", "L2 spreads weights out, L1 makes them sparse"),
    "minibatch": ("toolkit.experiments.minibatch", "full-batch against mini-batch gradient descent"),
    "capacity": ("toolkit.experiments.capacity", "a bigger net with a stronger λ against a smaller net"),
    "linear_net": ("toolkit.experiments.linear_net", "a net without activations is one linear map"),
    "activations": ("toolkit.experiments.activations", "how soon ReLU, sigmoid and tanh learn"),
    "zigzag": ("toolkit.experiments.zigzag", "inputs that are not zero-centred make descent zigzag"),
    "initialization": ("toolkit.experiments.initialization", "ten layers × 500 units, started in six ways"),
    "batchnorm": ("toolkit.experiments.batchnorm", "learning rates, initialisations and batch sizes it bears"),
    "random_search": ("toolkit.experiments.random_search", "random against grid search at an equal budget"),
    "update_rules": ("toolkit.experiments.update_rules", "SGD, momentum, Adam … in a narrow valley and at a saddle"),
    "lbfgs": ("toolkit.experiments.lbfgs", "L-BFGS on full batches and on mini-batches"),
    "dropout": ("toolkit.experiments.dropout", "what a unit gives in training and at test time, three ways"),
}
