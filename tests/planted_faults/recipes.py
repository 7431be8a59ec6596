"""The paper's recipes, the schedule that they follow and their models."""

from __future__ import annotations

from tests.planted_faults import Fault

_TESTS = ("tests/test_paper_recipes.py",)

FAULTS = (
    Fault(
        "a-radius-of-another-task",
        "configs/paper/glue_mrpc_msam.yaml",
        "  rho: 0.01\n",
        "  rho: 0.05\n",
        "A recipe has the numbers of its column.",
        _TESTS,
    ),
    Fault(
        "a-table-is-edited",
        "configs/paper/tables.yaml",
        "      number_of_epochs: 15\n",
        "      number_of_epochs: 20\n",
        "The tables hold the paper's numbers.",
        _TESTS,
    ),
    Fault(
        "ghost-batches-of-all-gpus",
        "configs/paper/sharded/imagenet_resnet50_msam_zero3.yaml",
        "  norm_samples: 64\n",
        "  norm_samples: 512\n",
        "Every recipe fits the paper's number of GPUs.",
        _TESTS,
    ),
    Fault(
        "one-cycle-ends-too-early",
        "msam_scale/optimization/schedules.py",
        "max(total - 1 - rise, 1.0)",
        "max(total - rise, 1.0)",
        "One cycle starts at 1/25 of the peak and ends at 1/250000.",
        _TESTS,
    ),
    Fault(
        "a-stem-for-large-images",
        "msam_scale/models/cifar_resnet.py",
        '    model.set_submodule("maxpool", nn.Identity())\n',
        "",
        "The ResNet-50 for CIFAR is torchvision's with a stem for 32 by 32 pixels.",
        _TESTS,
    ),
    Fault(
        "blocks-start-as-nothing",
        "msam_scale/models/cifar_resnet.py",
        '{"zero_init_last": False, **arguments}',
        "arguments",
        "The last batch norm of a block of the CIFAR ResNet starts at 1, as where it comes from.",
        _TESTS,
    ),
)
