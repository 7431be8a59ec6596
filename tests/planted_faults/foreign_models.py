"""Faults in what lets the models and habits of others run."""

from __future__ import annotations

from tests.planted_faults import Fault

_MODELS = "tests/test_foreign_models.py"
_HABITS = "tests/test_foreign_habits.py"
_ON_RANKS = "tests/test_foreign_models_on_ranks.py"

FAULTS = (
    Fault(
        name="cache-filled-in-training",
        file="msam_scale/layers/key_value_cache.py",
        old="                config.use_cache = False",
        new="                pass",
        claim="decoders of transformers fill no cache in a training pass",
        tests=(f"{_MODELS}::test_the_cache_is_off_in_passes_alone",),
    ),
    Fault(
        name="calls-not-restored-for-a-recomputation",
        file="msam_scale/layers/pass_context.py",
        old="self._recomputing(calls.copy(), generators)",
        new="self._recomputing(self._calls, host_generators())",
        claim="a block that is computed again has the masks of its forward",
        tests=(f"{_MODELS}::test_a_layer_called_twice_is_computed_again",),
    ),
    Fault(
        name="lists-not-restored-for-a-recomputation",
        file="msam_scale/layers/block_wrapping.py",
        old="            inputs, named_inputs = _copied(at_entry)\n",
        new="            pass\n",
        claim="a block that is computed again is given the lists of its forward",
        tests=(f"{_MODELS}::test_a_block_that_is_computed_again_finds_its_list_as_it_was",),
    ),
    Fault(
        name="host-generators-not-restored-for-a-recomputation",
        file="msam_scale/layers/pass_context.py",
        old="                set_host_generators(generators)",
        new="                pass",
        claim="a block that is computed again draws what it drew from numpy and Python",
        tests=(f"{_MODELS}::test_a_layer_called_twice_is_computed_again",),
    ),
    Fault(
        name="numpy-not-seeded",
        file="msam_scale/layers/generators.py",
        old="            np.random.seed(seed % 2**32)\n",
        new="",
        claim="both passes over a chunk draw the same from numpy's generator",
        tests=(f"{_MODELS}::test_both_passes_draw_the_same_on_the_host",),
    ),
    Fault(
        name="a-repeated-write-forgiven",
        file="msam_scale/layers/layout_checks.py",
        old="if name in self._written or isinstance(before[name].tensor, nn.Parameter):",
        new="if isinstance(before[name].tensor, nn.Parameter):",
        claim="a buffer that every forward changes is refused",
        tests=(f"{_MODELS}::test_what_a_model_must_not_write",),
    ),
    Fault(
        name="lr-scale-dropped",
        file="msam_scale/optimization/schedules.py",
        old='peaks = [group["lr"] * scale for',
        new='peaks = [group["lr"] for',
        claim="rates of layers from timm are kept",
        tests=(f"{_HABITS}::test_rates_that_timm_gives_its_layers_are_kept",),
    ),
    Fault(
        name="vectors-move-in-every-forward",
        file="msam_scale/layers/spectral_norm.py",
        old="            owner.training &= self._moved_in != self._context.num_steps_begun\n",
        new="",
        claim="spectral norm moves its vectors once a step",
        tests=(f"{_MODELS}::test_spectral_norm_moves_its_vectors_once_a_step",),
    ),
    Fault(
        name="vectors-of-a-skipped-step-kept",
        file="msam_scale/layers/spectral_norm.py",
        old="torch.where(skip, before, tensor)",
        new="tensor",
        claim="a skipped step leaves the vectors of spectral norm as they were",
        tests=(f"{_MODELS}::test_spectral_norm_moves_its_vectors_once_a_step",),
    ),
    Fault(
        name="samples-cut-by-rows",
        file="msam_scale/batch_tree.py",
        old="        of_samples=lambda samples: Samples(samples[start : start + length]),\n",
        new="        of_samples=lambda samples: samples,\n",
        claim="a list of one entry a sample is cut by entries",
        tests=(f"{_HABITS}::test_lists_with_one_entry_a_sample_are_cut_by_sample",),
    ),
    Fault(
        name="gathered-parameters-taken-for-the-losss",
        file="msam_scale/layers/layout_checks.py",
        old="for parameter in outside if parameter.grad is not None]",
        new="for parameter in outside]",
        claim="FSDP2's gathered parameters are not taken for parameters of the loss",
        tests=(f"{_HABITS}::test_parameters_of_the_loss_are_noticed",),
    ),
    Fault(
        name="zero3-does-not-look-at-what-is-frozen",
        file="msam_scale/sharding/zero/partitioned_parameters.py",
        old="        self._frozen.check_unchanged()\n",
        new="",
        claim="zero3 refuses what is frozen or unfrozen after initialize",
        tests=(f"{_ON_RANKS}::test_what_is_frozen_or_unfrozen_later_is_refused",),
    ),
    Fault(
        name="evaluation-mode-of-a-part-unsaid",
        file="msam_scale/model_checks.py",
        old="    for child_name, child in module.named_children():",
        new="    for child_name, child in ():",
        claim="a part of the model in evaluation mode is said",
        tests=(f"{_HABITS}::test_evaluation_mode_is_said_once",),
    ),
    Fault(
        name="no-labels-is-no-cause",
        file="msam_scale/passes.py",
        old="            self._summary.add_unlabelled(is_unlabelled)",
        new="            pass",
        claim="a micro-batch without labels is said to be the cause of a skipped step",
        tests=(f"{_HABITS}::test_a_micro_batch_without_labels_is_said_and_counted",),
    ),
)
