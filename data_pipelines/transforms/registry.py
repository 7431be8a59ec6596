"""The transform presets by name."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from data_pipelines.errors import UserError
from data_pipelines.registry import lookup
from data_pipelines.transforms.cifar import CIFAR_BASIC, CIFAR_ZERO
from data_pipelines.transforms.cutout import with_cutout
from data_pipelines.transforms.evaluation import (
    CentreSquare,
    ResizeShortEdge,
    ResizeSmallArea,
    Squash,
)
from data_pipelines.transforms.identity import Unaugmented, unprepared
from data_pipelines.transforms.inception import InceptionSAM, InceptionTorchvision, InceptionViT
from data_pipelines.transforms.presets import (
    AugmentImage,
    BatchAugmentation,
    PrepareImage,
    TransformPreset,
)
from data_pipelines.transforms.statistics import STATISTICS

_DEFAULT_SIZE = 224
_MAX_SIZE = 4096


@dataclass(frozen=True)
class ResizingTransform:
    """Transforms that give all images one size.

    Attributes:
        statistics: Name of the mean and standard deviation, unless others are asked for.
        augment: Makes the augmentation for a size; None augments nothing.
        evaluation: Name of the evaluation transform, unless another is asked for.
    """

    statistics: str
    augment: Callable[[int], AugmentImage] | None
    evaluation: str


@dataclass(frozen=True)
class SizePreservingTransform:
    """Transforms that leave images the size they have.

    Attributes:
        statistics: Name of the mean and standard deviation, unless others are asked for.
        augmentation: What training does; None does nothing.
    """

    statistics: str
    augmentation: BatchAugmentation | None


# What evaluation does, for a size.
_EVALUATIONS: dict[str, Callable[[int], PrepareImage]] = {
    "resize256_crop224_area": ResizeSmallArea,
    "resize256_crop224_bilinear": lambda size: ResizeShortEdge(size, share=0.875, bicubic=False),
    "crop875_bicubic": CentreSquare,
    "timm_0.9_bicubic": lambda size: ResizeShortEdge(size, share=0.9, bicubic=True),
    "squash_bilinear": Squash,
}

TRANSFORMS: dict[str, ResizingTransform | SizePreservingTransform] = {
    "none": SizePreservingTransform("none", None),
    "cifar_basic": SizePreservingTransform("cifar10", CIFAR_BASIC),
    "cifar_zero": SizePreservingTransform("cifar10", CIFAR_ZERO),
    "inception_vit": ResizingTransform("inception", InceptionViT, "resize256_crop224_area"),
    "inception_tv": ResizingTransform(
        "imagenet", InceptionTorchvision, "resize256_crop224_bilinear"
    ),
    "inception_sam": ResizingTransform("imagenet", InceptionSAM, "crop875_bicubic"),
    "resize256_crop224_area": ResizingTransform("inception", None, "resize256_crop224_area"),
    "resize256_crop224_bilinear": ResizingTransform("imagenet", None, "resize256_crop224_bilinear"),
    "crop875_bicubic": ResizingTransform("imagenet", None, "crop875_bicubic"),
    "timm_0.9_bicubic": ResizingTransform("inception", None, "timm_0.9_bicubic"),
    "squash_bilinear": ResizingTransform("inception", None, "squash_bilinear"),
}


def transform_preset(name: str) -> TransformPreset:
    """Returns the preset called `name`.

    Args:
        name: One of `TRANSFORMS`, and after a colon parameters that differ from the preset's own,
            as in `inception_vit:size=384,evaluation=timm_0.9_bicubic`:

            - `size`: height and width of the result, 224 without it; scales all sizes in a name;
            - `evaluation`: the evaluation transform that goes with an augmentation;
            - `statistics`: the mean and standard deviation, one of `STATISTICS`;
            - `cutout`: for `cifar_basic` and `cifar_zero`, the side of a square that is blanked.

    Raises:
        UserError: There is no such preset, parameter or value; the message gives what there is.
    """
    base, _, rest = (part.strip() for part in name.partition(":"))
    transform = lookup(TRANSFORMS, base, kind="transform")
    parameters = _parsed(name, rest)
    statistics = lookup(
        STATISTICS,
        parameters.pop("statistics", transform.statistics),
        kind=f"transform {base}: statistics",
    )
    if isinstance(transform, SizePreservingTransform):
        augmentation = transform.augmentation
        if augmentation is not None and "cutout" in parameters:
            length = _parsed_cutout(base, parameters.pop("cutout"))
            augmentation = with_cutout(augmentation, length=length, mean=statistics.mean)
        known = ("statistics", *(("cutout",) if augmentation is not None else ()))
        _check_all_known(base, parameters, known=known)
        return TransformPreset(
            name=name,
            augment=augmentation or Unaugmented(unprepared),
            prepare=unprepared,
            mean=statistics.mean,
            std=statistics.std,
            augment_batch=augmentation,
        )
    size = _parsed_size(base, parameters.pop("size", str(_DEFAULT_SIZE)))
    evaluation = transform.evaluation
    if transform.augment is not None:
        evaluation = parameters.pop("evaluation", evaluation)
    known = ("size", "statistics", *(("evaluation",) if transform.augment else ()))
    _check_all_known(base, parameters, known=known)
    prepare = lookup(_EVALUATIONS, evaluation, kind=f"transform {base}: evaluation")(size)
    return TransformPreset(
        name=name,
        augment=Unaugmented(prepare) if transform.augment is None else transform.augment(size),
        prepare=prepare,
        mean=statistics.mean,
        std=statistics.std,
        size=(size, size),
    )


def _parsed(name: str, rest: str) -> dict[str, str]:
    parameters: dict[str, str] = {}
    for setting in rest.split(",") if ":" in name else ():
        key, equals, value = (part.strip() for part in setting.partition("="))
        if not key or not equals or not value or key in parameters:
            raise UserError(
                f"transform: {name}: {setting!r} is not a parameter; written as in "
                "inception_vit:size=384,statistics=imagenet, each once"
            )
        parameters[key] = value
    return parameters


def _parsed_size(base: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= _MAX_SIZE:
        raise UserError(f"transform: {base}: size {text} is not in 1 … {_MAX_SIZE}")
    return int(text)


def _parsed_cutout(base: str, text: str) -> int:
    # SAM's code makes the square of an odd length a pixel smaller.
    if not text.isascii() or not text.isdigit() or not 2 <= int(text[:9]) <= _MAX_SIZE:
        raise UserError(f"transform: {base}: cutout {text} is not in 2 … {_MAX_SIZE}")
    if int(text) % 2:
        raise UserError(f"transform: {base}: cutout {text} is odd; squares have an even side")
    return int(text)


def _check_all_known(base: str, parameters: Mapping[str, str], *, known: tuple[str, ...]) -> None:
    if parameters:
        raise UserError(
            f"transform: {base} has no parameter {', '.join(sorted(parameters))}, "
            f"only {', '.join(sorted(known))}"
        )
