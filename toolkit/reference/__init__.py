"""The notes as code: every layer, loss and rule of the lecture summary, written out with plain tensor operations.

The files follow the notes' sections, in this order:

    Nearest Neighbor Classifier, K-Nearest Neighbor Classifier   neighbors
    Linear Classification (Score function)                        linear
    Loss Function                                                 losses
    Weight Regularization                                         regularizers
    Optimization                                                  optimizers
    Backpropagation                                               graph
    Neural Network: Neuron, Architectures                         mlp
    Activation Function                                           activations
    Data Preprocessing                                            preprocessing
    Weight Initialization                                         initializers
    Batch Normalization                                           batchnorm
    Babysitting the Learning Process                              diagnostics
    Parameter update                                              optimizers, lbfgs, schedules
    Regularization: Dropout                                       dropout
    Challenges: features of an image as a library                 features

Each function holds the mathematics, and `X_backward` beside `X` its gradient, derived by hand: the local gradient
times the upstream gradient. Each class holds the state and drops into any torch model.
"""
