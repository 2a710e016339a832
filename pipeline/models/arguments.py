"""The arguments that a model file may give to a builder of a library: an allow-list of names and kinds.

A library's builder takes more than what describes a network, such as files to read and folders to write. What has no
line here is refused, whatever the library would do with it.
"""

from collections.abc import Mapping
from typing import Any

from storage.errors import ModelError
from storage.kinds import NOTHING, SWITCH, Kind, mapping, number, several, shown, whole, word

RESERVED = {"weights", "weights_backbone", "encoder_weights", "num_classes", "classes"}
"""Arguments that would fetch weights, or that the model's description already gives."""

WIDTH = whole(1, 8192)
"""A number of channels."""
SHARE = number(0, 1)
ACTIVATION = NOTHING | word("identity", "sigmoid", "softmax", "softmax2d", "logsoftmax", "tanh")
NORMS = word("batchnorm", "identity", "layernorm", "instancenorm", "inplace")

TORCHVISION: Mapping[str, Kind] = {"aux_loss": NOTHING | SWITCH}
"""Arguments of torchvision's segmentation models."""

SMP: Mapping[str, Kind] = {
    "encoder_depth": whole(1, 8),
    "encoder_output_stride": whole(1, 64),
    "encoder_output_indices": NOTHING | several(whole(-256, 256), 1, 16),
    "in_channels": whole(1, 64),
    "activation": ACTIVATION,
    "aux_params": NOTHING
    | mapping(
        {
            "classes": whole(1, 2**16),
            "pooling": word("avg", "max"),
            "dropout": NOTHING | SHARE,
            "activation": ACTIVATION,
        }
    ),
    "upsampling": NOTHING | number(1, 64),
    "decoder_channels": WIDTH | several(WIDTH, 1, 16),
    "decoder_pyramid_channels": WIDTH,
    "decoder_segmentation_channels": WIDTH,
    "decoder_pab_channels": WIDTH,
    "decoder_intermediate_channels": several(WIDTH, 1, 16),
    "decoder_fusion_channels": WIDTH,
    "psp_out_channels": WIDTH,
    "decoder_use_norm": SWITCH
    | NORMS
    | mapping({"type": NORMS, "eps": SHARE, "momentum": SHARE, "affine": SWITCH, "track_running_stats": SWITCH}),
    "decoder_use_batchnorm": SWITCH | word("inplace"),
    "psp_use_batchnorm": SWITCH | word("inplace"),
    "decoder_attention_type": NOTHING | word("scse"),
    "decoder_interpolation": word("nearest", "nearest-exact", "bilinear", "bicubic", "area"),
    "decoder_merge_policy": word("add", "cat"),
    "decoder_readout": word("ignore", "add", "cat"),
    "decoder_atrous_rates": several(whole(1, 256), 1, 16),
    "decoder_aspp_separable": SWITCH,
    "decoder_dropout": SHARE,
    "decoder_aspp_dropout": SHARE,
    "psp_dropout": SHARE,
}
"""Arguments of segmentation-models-pytorch. Each architecture takes those of them that its signature names."""

TIMM: Mapping[str, Kind] = {
    "img_size": whole(1, 2**14) | several(whole(1, 2**14), 2, 2),
    "dynamic_img_size": SWITCH,
    "drop_rate": SHARE,
    "drop_path_rate": SHARE,
}
"""Arguments that smp hands on to an encoder of timm."""


def check_arguments(builder: str, arguments: Mapping[str, Any], kinds: Mapping[str, Kind]) -> None:
    """Refuse arguments that a builder does not take, and values that are not of their kind.

    Raises:
        ModelError: there is one; the message says what the builder takes.
    """
    for name, value in arguments.items():
        if name not in kinds:
            known = ", ".join(sorted(kinds)) or "none"
            raise ModelError(f"{builder} has no argument {shown(name)}; it takes {known}")
        if not kinds[name].holds(value):
            raise ModelError(f"{builder}: argument {name!r} is {shown(value)}; give {kinds[name].words}")
