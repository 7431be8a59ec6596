"""Faults of checkpoints and exports: what is written, what is believed, what is gone on from."""

from __future__ import annotations

from tests.planted_faults import Fault

_COMMIT = "msam_scale/checkpoint/commit.py"
_FOLDER = "msam_scale/checkpoint/folder.py"
_MANIFEST = "msam_scale/checkpoint/manifest.py"
_STATE = "msam_scale/checkpoint/state.py"
_WRITER = "msam_scale/checkpoint/writer.py"
_RESUMING = "msam_scale/training/resuming.py"
_WRITING = "tests/checkpoint/test_checkpoint_writing.py"
_DAMAGE = "tests/checkpoint/test_checkpoint_damage.py"
_RUNS = "tests/training/test_training_runs.py"
_ROLLBACK = "tests/training/test_rollback.py"
_EXPORTS = "tests/training/test_exports.py"

FAULTS = (
    Fault(
        name="latest-is-marked-before-the-folder-has-its-name",
        file=_COMMIT,
        old="    _give_name(partial, folder)\n    mark_latest(snapshot.directory, folder)\n",
        new="    mark_latest(snapshot.directory, folder)\n    _give_name(partial, folder)\n",
        claim="A process may be killed at any moment: `latest` names a checkpoint that is whole.",
        tests=(f"{_WRITING}::test_a_save_that_is_cut_off_leaves_whole_checkpoints",),
    ),
    Fault(
        name="the-old-one-goes-before-its-replacement-is-there",
        file=_COMMIT,
        old="    try:\n        rename_to_new(partial, folder)\n",
        new="        shutil.rmtree(old)\n        old = None\n    try:\n"
        "        rename_to_new(partial, folder)\n",
        claim="A checkpoint that is saved again is there at every moment, old or new.",
        tests=(f"{_WRITING}::test_one_that_is_being_replaced_comes_back",),
    ),
    Fault(
        name="a-refused-rename-loses-the-old-one",
        file=_COMMIT,
        old="        if old is not None:\n            old.rename(folder)\n        raise\n",
        new="        raise\n",
        claim="A checkpoint whose replacement cannot be written stays as it was.",
        tests=(f"{_WRITING}::test_one_whose_replacement_gets_no_name_stays",),
    ),
    Fault(
        name="what-a-full-disk-cut-off-stays",
        file=_COMMIT,
        old="            shutil.rmtree(partial, ignore_errors=True)\n",
        new="            pass\n",
        claim="A save that fails leaves nothing that takes room on the full disk.",
        tests=(f"{_WRITING}::test_a_full_disk_of_any_rank_leaves_what_was_there",),
    ),
    Fault(
        name="old-checkpoints-that-stay-end-the-run",
        file=_COMMIT,
        old="        except OSError as error:\n            _logger.warning(",
        new="        except BlockingIOError as error:\n            _logger.warning(",
        claim="An old checkpoint that cannot be removed costs a warning, not the new one.",
        tests=(f"{_WRITING}::test_old_ones_that_cannot_be_removed_are_warned_of",),
    ),
    Fault(
        name="one-checkpoint-fewer-is-kept",
        file=_FOLDER,
        old="*complete[-keep:]",
        new="*complete[-max(1, keep - 1) :]",
        claim="`checkpoint.keep` newest checkpoints are kept.",
        tests=(f"{_WRITING}::test_one_is_written_at_a_time_and_all_arrive",),
    ),
    Fault(
        name="incomplete-folders-count-as-kept",
        file=_FOLDER,
        old="[folder for folder in folders if is_complete(folder)]",
        new="list(folders)",
        claim="Only complete checkpoints count as kept.",
        tests=(f"{_WRITING}::test_an_incomplete_folder_does_not_count_as_kept",),
    ),
    Fault(
        name="rotation-removes-what-latest-names",
        file=_FOLDER,
        old="kept = {*complete[-keep:], latest_checkpoint(directory)}",
        new="kept = {*complete[-keep:]}",
        claim="The checkpoint that `latest` names is never removed.",
        tests=(f"{_WRITING}::test_the_one_that_latest_names_stays",),
    ),
    Fault(
        name="a-replaced-checkpoint-does-not-come-back",
        file=_FOLDER,
        old="if name is not None and not (directory / name[1]).exists():",
        new="if name is not None and (directory / name[1]).exists():",
        claim="A kill between the two renames of a replacement loses no checkpoint.",
        tests=(f"{_WRITING}::test_one_that_is_being_replaced_comes_back",),
    ),
    Fault(
        name="the-newest-is-the-last-by-name",
        file=_FOLDER,
        old="return sorted(folders, key=step_of)",
        new="return sorted(folders)",
        claim="The newest checkpoint is the one of the highest step, also beyond eight digits.",
        tests=("tests/checkpoint/test_checkpoint_state.py",),
    ),
    Fault(
        name="only-the-first-file-is-verified",
        file=_MANIFEST,
        old="sorted(self.files)[index::count]",
        new="sorted(self.files)[index:count]",
        claim="Every file of a checkpoint is compared with its checksum before it is used.",
        tests=(f"{_DAMAGE}::test_without_checksums_damage_goes_unnoticed",),
    ),
    Fault(
        name="ranks-verify-one-share-twice",
        file=_COMMIT,
        old="index=ranks.rank, count=ranks.size",
        new="index=0, count=ranks.size",
        claim="Ranks share the reading, and together they verify every file.",
        tests=(f"{_DAMAGE}::test_the_damage_matrix",),
    ),
    Fault(
        name="links-are-followed",
        file="msam_scale/checkpoint/json_files.py",
        old="    if path.is_symlink():\n",
        new="    if path.is_symlink() and not path.exists():\n",
        claim="A checkpoint from elsewhere cannot point at files outside of it.",
        tests=(f"{_DAMAGE}::test_a_hostile_checkpoint_is_refused",),
    ),
    Fault(
        name="file-names-may-lead-elsewhere",
        file=_MANIFEST,
        old="if not _FILE_NAME.fullmatch(name):",
        new="if not _FILE_NAME.search(name):",
        claim="A manifest cannot name files outside of its folder.",
        tests=(f"{_DAMAGE}::test_a_hostile_checkpoint_is_refused",),
    ),
    Fault(
        name="parts-may-leave-a-gap",
        file="msam_scale/checkpoint/shards.py",
        old="if start != position or not _is_range(part, shape):",
        new="if start < position or not _is_range(part, shape):",
        claim="A tensor of which elements are missing is refused.",
        tests=(f"{_DAMAGE}::test_headers_that_lie_are_refused",),
    ),
    Fault(
        name="a-damaged-checkpoint-ends-the-run",
        file="msam_scale/training/resuming.py",
        old="                candidates = Candidates(candidates.usable[1:], damaged)\n",
        new="                raise\n",
        claim="A run passes over a damaged checkpoint and goes on from the one before.",
        tests=(f"{_DAMAGE}::test_a_run_passes_over_damaged_checkpoints_and_says_so",),
    ),
    Fault(
        name="latest-still-names-the-damaged-one",
        file=_RESUMING,
        old="            mark_latest(self.newest.parent, self.newest)\n",
        new="            pass\n",
        claim="Once damaged checkpoints are set aside, `latest` names an intact one.",
        tests=(f"{_DAMAGE}::test_latest_names_one_that_is_intact_once_damaged_ones_are_set_aside",),
    ),
    Fault(
        name="the-oldest-is-gone-on-from",
        file=_RESUMING,
        old="for folder in reversed(step_folders(directory)):",
        new="for folder in step_folders(directory):",
        claim="A run goes on from its newest checkpoint.",
        tests=(f"{_RUNS}::test_a_resumed_run_is_bit_identical",),
    ),
    Fault(
        name="parts-of-a-tensor-share-a-buffer",
        file="msam_scale/checkpoint/snapshot.py",
        old='f"{piece.name}:{piece.start}"',
        new="piece.name",
        claim="What is written beside training is the state of its step, on every layout.",
        tests=(f"{_WRITING}::test_parts_of_one_tensor_are_staged_apart",),
    ),
    Fault(
        name="two-are-written-at-a-time",
        file=_WRITER,
        old='        """Copies the snapshot and writes it beside what comes next. Collective."""\n'
        "        self.wait()\n",
        new='        """Copies the snapshot and writes it beside what comes next. Collective."""\n',
        claim="Memory for one snapshot is used by one checkpoint at a time.",
        tests=(f"{_WRITING}::test_one_is_written_at_a_time_and_all_arrive",),
    ),
    Fault(
        name="a-failure-beside-training-is-silent",
        file=_WRITER,
        old="        if self._error is not None:\n            raise self._error\n",
        new="",
        claim="Who asks for a checkpoint that could not be written is told.",
        tests=(f"{_WRITING}::test_a_full_disk_of_any_rank_leaves_what_was_there",),
    ),
    Fault(
        name="a-failure-nobody-asks-for-is-not-logged",
        file=_WRITER,
        old="if self._error is not None and not self._is_told:",
        new="if self._error is not None and self._is_told:",
        claim="A checkpoint that failed beside training is warned of.",
        tests=(f"{_WRITING}::test_a_failure_that_nobody_asks_for_is_logged",),
    ),
    Fault(
        name="a-full-disk-is-found-out-at-the-end",
        file="msam_scale/training/saving.py",
        old="        self._is_written(pending.result(), state)\n",
        new="        try:\n            self._is_written(pending.result(), state)\n"
        "        except ValueError:\n            pass\n",
        claim="A run ends with its last good checkpoint where the next cannot be written.",
        tests=(f"{_WRITING}::test_a_run_ends_with_its_last_checkpoint_when_the_disk_is_full",),
    ),
    Fault(
        name="weights-that-are-not-finite-prune-good-ones",
        file="msam_scale/checkpoint/commit.py",
        old="    if not names:\n",
        new="    if names is not None:\n",
        claim="Values that are not finite become no checkpoint and prune none.",
        tests=(f"{_WRITING}::test_weights_that_are_not_finite_prune_no_good_checkpoint",),
    ),
    Fault(
        name="skipped-steps-are-forgotten",
        file=_STATE,
        old="    engine.skipped_steps.load(progress.skipped_steps)\n",
        new="",
        claim="A resumed run counts skipped steps on from where it was.",
        tests=("tests/checkpoint/test_checkpoint_state.py",),
    ),
    Fault(
        name="the-loss-scale-starts-anew",
        file=_STATE,
        old="    sharding.load_counters(progress.counters)\n",
        new="",
        claim="A resumed float16 run goes on with the loss scale that it had.",
        tests=("tests/checkpoint/test_checkpoint_state.py",),
    ),
    Fault(
        name="the-average-starts-anew",
        file=_STATE,
        old="    sharding.load(averaged, None)\n    engine.average.copy_from_weights()\n",
        new="    sharding.load(averaged, None)\n",
        claim="A resumed run has the average of the weights that was saved.",
        tests=("tests/checkpoint/test_checkpoint_state.py",),
    ),
    Fault(
        name="a-tensor-of-another-shape-is-taken",
        file=_STATE,
        old="if shape != tensor.shape or (types and dtype != tensor.dtype):",
        new="if types and (shape != tensor.shape or dtype != tensor.dtype):",
        claim="Weights of another model are refused with the name of the tensor.",
        tests=("tests/launch/test_sharpness.py::test_mistakes_exit_with_2_and_one_line",),
    ),
    Fault(
        name="the-average-is-not-what-is-exported",
        file="launch/commands/export.py",
        old="averaged=arguments.averaged",
        new="averaged=False",
        claim="`msam-scale export --averaged` writes the averaged weights.",
        tests=("tests/checkpoint/test_checkpoint_command.py",),
    ),
    Fault(
        name="timm-is-told-no-statistics",
        file="msam_scale/export/timm_folder.py",
        old='"mean": transform.mean or (0.0,),',
        new='"mean": (0.0,),',
        claim="timm prepares images for an exported model as the run did.",
        tests=(f"{_EXPORTS}::test_timm_loads_what_was_trained",),
    ),
    Fault(
        name="exported-models-are-of-the-first-checkpoint",
        file="msam_scale/export/trained_model.py",
        old="    checkpoint = find_checkpoint(inside if inside.is_dir() else location)\n",
        new="    from msam_scale.checkpoint import step_folders\n\n"
        "    checkpoint = step_folders(inside if inside.is_dir() else location)[0]\n",
        claim="What is exported of a run is its newest checkpoint.",
        tests=(f"{_EXPORTS}::test_plain_weights_and_what_is_refused",),
    ),
    Fault(
        name="the-data-start-anew-after-a-resume",
        file="msam_scale/training/run.py",
        old="steps=range(steps.start + offset, steps.stop + offset)",
        new="steps=range(offset, steps.stop - steps.start + offset)",
        claim="A resumed run trains on the data that come next.",
        tests=(f"{_RUNS}::test_a_resumed_run_is_bit_identical",),
    ),
    Fault(
        name="the-place-in-the-data-forgets-rollbacks",
        file="msam_scale/training/run.py",
        old="position = self._engine.num_steps_done + self._rollbacks.data_offset",
        new="position = self._engine.num_steps_done",
        claim="A run that has passed over data goes on behind them after a restart.",
        tests=(f"{_ROLLBACK}::test_a_run_goes_back_and_on_with_later_data",),
    ),
)
