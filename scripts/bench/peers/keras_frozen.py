"""Keras's guide to transfer learning on its TensorFlow backend: a frozen network in every epoch, a new Dense on top.

    python keras_frozen.py SPLIT.csv WEIGHTS.pt EPOCHS

Keras Hub's EfficientNet-Lite0 with the weights of WEIGHTS.pt, the state dict of timm's tf_efficientnet_lite0: its
features are those of timm's network to 1e-5. `tf.data` reads, decodes and resizes, with as many threads as it likes;
mirror images and rotations, dropout of 0.2 and Adam at 1e-3, validation after each epoch, of which the best is told.
Prints a line of JSON.
"""

import csv
import json
import os
import sys
import time

os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras_hub.models import EfficientNetBackbone

SIDE, BATCH = 224, 32


def backbone(weights):
    """Return EfficientNet-Lite0 without its head, with a state dict {name: array} of timm's."""
    network = EfficientNetBackbone(
        stackwise_width_coefficients=[1.0] * 7,
        stackwise_depth_coefficients=[1.0] * 7,
        stackwise_kernel_sizes=[3, 3, 5, 3, 5, 5, 3],
        stackwise_num_repeats=[1, 2, 2, 3, 3, 4, 1],
        stackwise_input_filters=[32, 16, 24, 40, 80, 112, 192],
        stackwise_output_filters=[16, 24, 40, 80, 112, 192, 320],
        stackwise_expansion_ratios=[1, 6, 6, 6, 6, 6, 6],
        stackwise_squeeze_and_excite_ratios=[0] * 7,
        stackwise_strides=[1, 2, 2, 2, 1, 2, 1],
        stackwise_block_types=["v1"] * 7,
        include_stem_padding=False,
        stem_conv_padding="same",
        batch_norm_epsilon=1e-3,
        activation="relu6",
        projection_activation=None,
        dropout=0.0,
        image_shape=(SIDE, SIDE, 3),
        min_depth=None,
        use_depth_divisor_as_min_depth=True,
        cap_round_filter_decrease=True,
    )
    kernels = iter([array for name, array in weights.items() if array.ndim == 4])
    norms = iter([name.removesuffix(".running_mean") for name in weights if name.endswith(".running_mean")])
    padder = None
    for layer in network.layers:
        if isinstance(layer, keras.layers.ZeroPadding2D):
            padder = layer
        elif isinstance(layer, keras.layers.DepthwiseConv2D):
            if layer.strides == (2, 2):  # it pads as PyTorch does; these weights are from TensorFlow, which pads below
                half = layer.kernel_size[0] // 2
                padder.padding = ((half - 1, half), (half - 1, half))
            layer.set_weights([next(kernels).transpose(2, 3, 0, 1)])
        elif isinstance(layer, keras.layers.Conv2D):
            layer.set_weights([next(kernels).transpose(2, 3, 1, 0)])
        elif isinstance(layer, keras.layers.BatchNormalization):
            norm = next(norms)
            layer.set_weights([weights[f"{norm}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")])
    return network


def read(file):
    """Return {name: array} of a state dict; TensorFlow and torch are not both kept in memory."""
    import torch

    return {name: tensor.numpy() for name, tensor in torch.load(file, weights_only=True).items()}


def images(rows, names, training):
    """Return a tf.data.Dataset of (image, label) batches."""

    def load(path, label):
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.image.resize(image, (SIDE, SIDE)) / 127.5 - 1.0, label

    paths, labels = [row["path"] for row in rows], [names.index(row["label"]) for row in rows]
    found = tf.data.Dataset.from_tensor_slices((paths, labels))
    found = found.shuffle(len(rows)) if training else found
    return found.map(load, num_parallel_calls=tf.data.AUTOTUNE).batch(BATCH).prefetch(tf.data.AUTOTUNE)


def main():
    """Train and tell."""
    with open(sys.argv[1], encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    names = sorted({row["label"] for row in rows})
    keras.utils.set_random_seed(0)
    network = backbone(read(sys.argv[2]))
    network.trainable = False
    train, val = (
        images([row for row in rows if row["split"] == split], names, split == "train") for split in ("train", "val")
    )
    inputs = keras.Input((SIDE, SIDE, 3))
    changed = keras.layers.RandomRotation(0.1)(keras.layers.RandomFlip("horizontal")(inputs))
    pooled = keras.layers.GlobalAveragePooling2D()(network(changed, training=False))
    outputs = keras.layers.Dense(len(names))(keras.layers.Dropout(0.2)(pooled))
    model = keras.Model(inputs, outputs)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-3), loss=loss, metrics=["accuracy"])
    start = time.perf_counter()
    history = model.fit(train, validation_data=val, epochs=int(sys.argv[3]), verbose=0).history
    print(json.dumps({"accuracy": float(np.max(history["val_accuracy"])), "train_s": time.perf_counter() - start}))


if __name__ == "__main__":
    main()
