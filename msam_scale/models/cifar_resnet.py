"""ResNet-50 for images of 32 x 32 pixels."""

from __future__ import annotations

from typing import Any

from torch import nn


def cifar_resnet50(**arguments: Any) -> nn.Module:
    """The bottleneck ResNet-50 with a 3x3 stem of stride 1 and no max-pooling.

    Everything after the stem is ResNet-50 (He et al., 2016, with the stride in the 3x3 convolution
    of a bottleneck), so that images of 32 x 32 pixels reach the head as 4 x 4. He et al. have no
    ResNet-50 for CIFAR; this is the one of SimCLR (Chen et al., 2020, appendix B.9) and of the
    widespread `kuangliu/pytorch-cifar`, with 23.5 million parameters at 10 classes.

    Args:
        arguments: of timm's ResNet, such as `num_classes`, `in_chans`, `drop_path_rate`. The last
            batch norm of a block starts at 1 unless `zero_init_last` is true.
    """
    import timm  # takes a second
    from timm.models.resnet import ResNet

    model = timm.create_model("resnet50", **{"zero_init_last": False, **arguments})
    assert isinstance(model, ResNet)
    old = model.get_submodule("conv1")
    assert isinstance(old, nn.Conv2d)
    stem = nn.Conv2d(old.in_channels, old.out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    model.set_submodule("conv1", stem)
    model.set_submodule("maxpool", nn.Identity())
    return model
