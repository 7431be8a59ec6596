"""Faults with what others have made: configs, runs, checkpoints and the names in them."""

from __future__ import annotations

from tests.planted_faults import Fault

_CONFIGS = "tests/security/test_hostile_configs.py"
_RUNS = "tests/security/test_hostile_runs.py"
_LIMITS = "tests/launch/test_limits.py"
_BRACES = f"{_CONFIGS}::test_braces_that_stand_for_too_much_are_refused"

FAULTS = (
    Fault(
        name="braces-in-braces-without-end",
        file="data_pipelines/index/locate.py",
        old=" or len(levels) > _MOST_LEVELS:",
        new=":",
        claim="Braces are looked at before they are expanded: a short pattern takes no memory.",
        tests=(_BRACES,),
    ),
    Fault(
        name="a-runs-config-consents-for-its-user",
        file="msam_scale/config/load.py",
        old="    if not allow_code:\n        config = _with_defaults(config, _CONSENT)\n",
        new="",
        claim="Commands that a run's config names run with --allow-code alone.",
        tests=(f"{_RUNS}::test_a_run_does_not_consent_to_its_own_commands",),
    ),
    Fault(
        name="names-control-the-terminal",
        file="launch/output.py",
        old='escaped(text[len(start) :], keeps="\\n\\t")',
        new="text[len(start) :]",
        claim="What commands print of others' files does nothing to a terminal.",
        tests=(f"{_RUNS}::test_names_do_nothing_to_a_terminal",),
    ),
    Fault(
        name="paths-longer-than-paths-can-be",
        file="msam_scale/config/sections/base.py",
        old="len(path) > _PATH_BYTES or any(",
        new="any(",
        claim="A path that no file system has is refused with its key.",
        tests=("tests/config/test_mistakes.py::test_paths_that_no_file_system_has_are_refused",),
    ),
    Fault(
        name="what-a-models-argument-leads-to-is-ours",
        file="msam_scale/models/__init__.py",
        old="            if not request.arguments and not isinstance(error, _OF_NAMES_AND_DATA):",
        new="            if not isinstance(error, _OF_NAMES_AND_DATA):",
        claim="model.args that a model cannot use end in one line.",
        tests=(f"{_CONFIGS}::test_arguments_that_a_model_cannot_use_are_refused",),
    ),
    Fault(
        name="what-a-run-keeps-is-believed",
        file="msam_scale/training/resuming.py",
        old="        run = _OfARun.model_validate(progress.extra)\n",
        new="        run = _OfARun()\n",
        claim="What a checkpoint says is of the types that a run writes, or is refused.",
        tests=(f"{_RUNS}::test_progress_that_no_run_has_is_refused",),
    ),
    Fault(
        name="optimizer-states-of-any-shape",
        file="msam_scale/checkpoint/state.py",
        old="        if expected and parts[name] not in expected:",
        new="        if expected and parts[name].keys() != expected[0].keys():",
        claim="An optimizer state of other shapes is refused: fused steps read behind it.",
        tests=(f"{_RUNS}::test_optimizer_states_of_another_shape_are_refused",),
    ),
    Fault(
        name="a-file-of-weights-decides-the-size",
        file="msam_scale/models/timm_models.py",
        old="            if found != expected:",
        new="            if found == ():",
        claim="A small file of weights leads to no large model.",
        tests=(f"{_RUNS}::test_weights_decide_no_size_alone",),
    ),
    Fault(
        name="limits-are-tracebacks",
        file="launch/output.py",
        old="number == errno.EMFILE or os.strerror(errno.EMFILE) in text",
        new="number == errno.ENFILE",
        claim="A limit of the machine is named with its value and what is needed.",
        tests=(f"{_LIMITS}::test_too_few_open_files_are_named",),
    ),
    Fault(
        name="a-loss-scale-is-the-datas-fault",
        file="msam_scale/optimization/skipping.py",
        old="        if scale <= _LARGEST:\n",
        new="        if scale > 0:\n",
        claim="Steps that a loss scale makes overflow are put down to it.",
        tests=("tests/test_non_finite.py::test_a_loss_scale_beyond_the_type_is_named",),
    ),
)
