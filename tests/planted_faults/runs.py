"""Faults of runs: stopping and going on, measuring and reporting, commands and launchers."""

from __future__ import annotations

from tests.planted_faults import Fault

_RUN = "msam_scale/training/run.py"
_ROLLBACK = "msam_scale/training/rollback.py"
_MEASUREMENTS = "msam_scale/training/measurements.py"
_EVALUATION = "msam_scale/training/evaluation.py"
_RUN_FOLDER = "msam_scale/training/run_folder.py"
_STOP = "msam_scale/supervision/stop_request.py"
_HEARTBEATS = "msam_scale/supervision/heartbeats.py"
_WATCHDOG = "msam_scale/supervision/watchdog.py"
_METRIC_LINES = "msam_scale/monitoring/metric_lines.py"
_RANK = "launch/train.py"

_OF_ROLLBACK = "tests/training/test_rollback.py"
_OF_RUNS = "tests/training/test_training_runs.py"
_OF_RANKS = "tests/training/test_runs_on_ranks.py"
_OF_STOPS = "tests/supervision/test_stop_request.py"
_OF_THE_WATCHDOG = "tests/supervision/test_watchdog.py"
_OF_MEASUREMENTS = "tests/supervision/test_due_measurements.py"
_OF_STOPPED_RANKS = "tests/supervision/test_stopped_ranks.py"
_OF_REPORTS = "tests/training/test_reports.py"
_OF_MISTAKES = "tests/training/test_training_mistakes.py"
_OF_LAUNCHERS = "tests/launch/test_launchers.py"
_OF_THE_COMMAND = "tests/launch/test_cli_config.py"

FAULTS = (
    # Rollback.
    Fault(
        name="the-bad-mini-batch-is-met-again",
        file=_ROLLBACK,
        old="self.data_offset = position + 1 - done",
        new="self.data_offset = position - done",
        claim="A rollback passes over the data up to and with the bad mini-batch.",
        tests=(f"{_OF_ROLLBACK}::test_a_checkpoint_of_a_stop_is_passed_by",),
    ),
    Fault(
        name="one-rollback-too-many",
        file=_ROLLBACK,
        old="if self._in_a_row >= self._limit:",
        new="if self._in_a_row > self._limit:",
        claim="More than `objective.max_rollbacks` in a row end the run.",
        tests=(f"{_OF_ROLLBACK}::test_rollbacks_are_bounded",),
    ),
    Fault(
        name="rollbacks-count-for-ever",
        file=_ROLLBACK,
        old="            self._checkpoint, self._in_a_row = checkpoint, 0\n",
        new="            self._checkpoint = checkpoint\n",
        claim="Another checkpoint that is reached allows as many rollbacks again.",
        tests=(f"{_OF_ROLLBACK}::test_a_checkpoint_of_a_stop_is_passed_by",),
    ),
    Fault(
        name="a-stop-moves-the-place-to-go-back-to",
        file=_ROLLBACK,
        old="return next(iter([*regular, *checkpoints]), None)",
        new="return next(iter(checkpoints), None)",
        claim="A run that was stopped goes back to where it would have without the stop.",
        tests=(f"{_OF_ROLLBACK}::test_a_checkpoint_of_a_stop_is_passed_by",),
    ),
    Fault(
        name="tensorboard-keeps-what-was-done-again",
        file=_RUN,
        old="        self._monitor.rewind(step)\n",
        new="",
        claim="TensorBoard shows each step of a run once, also after a rollback.",
        tests=(f"{_OF_ROLLBACK}::test_a_run_goes_back_and_on_with_later_data",),
    ),
    # Stops.
    Fault(
        name="reasons-of-ranks-add-up",
        file=_STOP,
        old="op=dist.ReduceOp.MAX",
        new="op=dist.ReduceOp.SUM",
        claim="A run that is stopped names the signal that asked for it.",
        tests=(f"{_OF_STOPS}::test_ranks_agree_one_turn_later",),
    ),
    Fault(
        name="the-same-signal-again-kills",
        file=_STOP,
        old="elif now - self._first_signal > _SECONDS_OF_ONE_REQUEST:",
        new="else:",
        claim="A launcher may send a signal several times: the run is saved all the same.",
        tests=(f"{_OF_STOPS}::test_how_a_signalled_process_ends",),
    ),
    Fault(
        name="grace-has-no-end",
        file=_STOP,
        old="        self._start_grace(reason)\n\n    def poll",
        new="\n    def poll",
        claim="A process that does not stop within `faults.grace` ends itself.",
        tests=(f"{_OF_STOPS}::test_how_a_signalled_process_ends",),
    ),
    Fault(
        name="ranks-stop-at-different-steps",
        file=_STOP,
        old="                self._agreed = int(self._value)  # in host memory\n",
        new="                self._agreed = int(self._value) or self._asked\n",
        claim="All ranks stop after the same step.",
        tests=(f"{_OF_STOPS}::test_ranks_agree_one_turn_later",),
    ),
    Fault(
        name="signals-are-not-given-back",
        file="msam_scale/supervision/signals.py",
        old="            signal.set_wakeup_fd(self._fd_before)\n",
        new="",
        claim="A program that trains has its signals back afterwards.",
        tests=(f"{_OF_STOPS}::test_signals_are_given_back",),
    ),
    Fault(
        name="an-orphan-lives-on",
        file="msam_scale/supervision/launcher.py",
        old="        if self.launchers:\n            self._thread.start()\n",
        new="        if len(self.launchers) > 1:\n            self._thread.start()\n",
        claim="A rank whose launcher is killed saves and ends.",
        tests=(f"{_OF_STOPS}::test_a_rank_notices_that_its_launcher_is_killed",),
    ),
    Fault(
        name="only-the-direct-launcher-is-watched",
        file="msam_scale/supervision/launcher.py",
        old="self.launchers = _launchers() if started else []",
        new="self.launchers = _launchers()[:1] if started else []",
        claim="Ranks save and end when a signal has ended `deepspeed`.",
        tests=(f"{_OF_LAUNCHERS}::test_a_run_is_stopped_in_order_and_is_that_of_any_ranks",),
    ),
    Fault(
        name="a-stopped-run-is-not-saved",
        file=_RUN,
        old="            return  # the next start meets it again, and goes back\n"
        "        self._saver.save_last(self._extra())\n",
        new="            return  # the next start meets it again, and goes back\n",
        claim="A run that is asked to stop saves the last step done.",
        tests=(f"{_OF_MEASUREMENTS}::test_what_a_stop_interrupts_stays_due",),
    ),
    Fault(
        name="a-stop-at-the-start-is-not-heard",
        file=_RUN,
        old="        self._supervision.start_check()\n",
        new="",
        claim="A run that is asked to stop before its first step does not begin.",
        tests=(f"{_OF_MEASUREMENTS}::test_a_stop_before_the_first_step_saves_nothing",),
    ),
    Fault(
        name="a-stopped-run-counts-as-finished",
        file=_RANK,
        old="return SUCCESS if outcome.stopped_by is None else PREEMPTED",
        new="return SUCCESS",
        claim="The exit code of a run that is to be started again is 75.",
        tests=(f"{_OF_MEASUREMENTS}::test_what_a_stop_interrupts_stays_due",),
    ),
    Fault(
        name="a-mistake-counts-as-a-failure",
        file=_RANK,
        old="return _fail(ranks, str(told(error)), code=USER_ERROR, stop=supervision.stop)",
        new="return _fail(ranks, str(told(error)), code=FAILURE, stop=supervision.stop)",
        claim="The exit code of what the user can mend is 2.",
        tests=(f"{_OF_MISTAKES}::test_a_mistake_is_named_and_nothing_is_written",),
    ),
    Fault(
        name="every-rank-says-the-mistake",
        file=_RANK,
        old="            time.sleep(_SECONDS_FOR_RANK_0)\n",
        new="",
        claim="What is wrong on all ranks is said once.",
        tests=(f"{_OF_LAUNCHERS}::test_a_mistake_that_only_ranks_can_find_is_said_once",),
    ),
    Fault(
        name="the-command-hides-how-ranks-ended",
        file="launch/local_ranks.py",
        old="            return failure.exitcode\n",
        new="            return FAILURE\n",
        claim="A rank's exit code survives `msam-scale train --nproc`.",
        tests=(f"{_OF_LAUNCHERS}::test_a_mistake_that_only_ranks_can_find_is_said_once",),
    ),
    # The watchdog, and lost ranks.
    Fault(
        name="a-suspended-job-is-taken-for-one-that-hangs",
        file=_WATCHDOG,
        old="waited += min(now - last_look, 2 * interval)",
        new="waited += now - last_look",
        claim="The time that a whole process is stopped does not count as hanging.",
        tests=(f"{_OF_THE_WATCHDOG}::test_the_time_of_a_stopped_process_does_not_count",),
    ),
    Fault(
        name="beats-do-not-reset-the-watchdog",
        file=_WATCHDOG,
        old="                seen, waited = self._mark, 0.0\n",
        new="                seen = self._mark\n",
        claim="A run that makes progress is never ended by the watchdog.",
        tests=(f"{_OF_THE_WATCHDOG}::test_a_process_without_a_beat_says_where_it_hangs_and_ends",),
    ),
    Fault(
        name="a-rank-that-waits-is-taken-for-silent",
        file=_HEARTBEATS,
        old="before.number != after.number",
        new="before.step != after.step",
        claim="A rank that waits for others is not taken for a lost one.",
        tests=(f"{_OF_THE_WATCHDOG}::test_a_rank_that_no_longer_beats_is_silent",),
    ),
    Fault(
        name="ranks-at-the-same-place-are-behind",
        file=_HEARTBEATS,
        old="return (self.step, mine) < (step, _PHASES.index(phase))",
        new="return (self.step, mine) <= (step, _PHASES.index(phase))",
        claim="Of a run that hangs the ranks are named that have not come as far, and no others.",
        tests=(f"{_OF_THE_WATCHDOG}::test_behind_is_an_earlier_step_or_an_earlier_phase_of_it",),
    ),
    Fault(
        name="every-error-is-a-lost-rank",
        file="msam_scale/supervision/lost_rank.py",
        old="    if not isinstance(error, RuntimeError):\n        return None\n",
        new="",
        claim="An error of this rank is not laid at another one's door.",
        tests=(f"{_OF_THE_WATCHDOG}::test_only_a_lost_connection_is_a_lost_rank",),
    ),
    # Measurements and evaluation.
    Fault(
        name="an-interrupted-measurement-is-lost",
        file=_MEASUREMENTS,
        old="        self.due = list(due)\n",
        new="        self.due: list[str] = []\n",
        claim="A measurement that a stop interrupts is made by the next start.",
        tests=(f"{_OF_MEASUREMENTS}::test_what_a_stop_interrupts_stays_due",),
    ),
    Fault(
        name="sharpness-every-so-many-steps",
        file=_MEASUREMENTS,
        old="(config.monitor.sharpness_every or 0) * prepared.steps_per_epoch",
        new="config.monitor.sharpness_every or 0",
        claim="`monitor.sharpness_every` counts epochs.",
        tests=(f"{_OF_RUNS}::test_what_is_measured_on_the_way_leaves_the_run_as_it_is",),
    ),
    Fault(
        name="the-last-evaluation-is-left-out",
        file=_MEASUREMENTS,
        old="(step % self._eval_every == 0 or is_last)",
        new="step % self._eval_every == 0",
        claim="A run is evaluated after its last step.",
        tests=(f"{_OF_RUNS}::test_other_objectives_models_and_optimizers_train",),
    ),
    Fault(
        name="the-average-is-evaluated-as-the-weights",
        file=_MEASUREMENTS,
        old="            with self._engine.averaged_weights():\n"
        "                self.averaged_evaluation = evaluate(",
        new="            if True:\n                self.averaged_evaluation = evaluate(",
        claim="`ema_loss` and `ema_accuracy` are those of the averaged weights.",
        tests=(f"{_OF_RUNS}::test_what_is_measured_on_the_way_leaves_the_run_as_it_is",),
    ),
    Fault(
        name="training-goes-on-in-evaluation-mode",
        file=_EVALUATION,
        old="    engine.train()\n",
        new="",
        claim="An evaluation leaves the run as it is.",
        tests=(f"{_OF_RUNS}::test_a_resumed_run_is_bit_identical",),
    ),
    Fault(
        name="evaluation-in-training-mode",
        file=_EVALUATION,
        old="    engine.eval()\n",
        new="",
        claim="Validation uses running statistics and drops nothing.",
        tests=("tests/training/test_text_runs.py::test_metrics_are_scikit_learns",),
    ),
    Fault(
        name="validation-losses-of-batches-are-averaged",
        file=_EVALUATION,
        old='loss += F.cross_entropy(logits, labels, reduction="sum")',
        new="loss += F.cross_entropy(logits, labels)",
        claim="The validation loss is the mean over samples, however they are cut into batches.",
        tests=(f"{_OF_RANKS}::test_a_run_with_everything_depends_on_no_layout_and_no_restart",),
    ),
    # Reports.
    Fault(
        name="the-learning-rate-of-the-next-step",
        file=_RUN,
        old="                    self._report(result, learning_rate, ascends=ascends)\n",
        new="                    self._report(result, engine.learning_rate, ascends=ascends)\n",
        claim="`lr` is the learning rate of the reported step.",
        tests=(f"{_OF_RUNS}::test_the_learning_rate_is_that_of_the_step",),
    ),
    Fault(
        name="the-last-step-is-not-reported",
        file=_RUN,
        old="reports = step % self._config.monitor.every == 0 or step == num_steps",
        new="reports = step % self._config.monitor.every == 0",
        claim="The last step of a run is reported.",
        tests=(f"{_OF_RUNS}::test_a_run_writes_what_it_promises",),
    ),
    Fault(
        name="the-time-of-earlier-reports-counts-again",
        file="msam_scale/monitoring/throughput.py",
        old="self._num_steps, self._seconds = 0, 0.0\n        self.resume()",
        new="self._num_steps = 0\n        self.resume()",
        claim="`samples_per_second` is that of the steps since the report before.",
        tests=(f"{_OF_REPORTS}::test_speed_counts_steps_and_nothing_else",),
    ),
    Fault(
        name="a-resumed-run-drops-the-line-of-its-checkpoint",
        file=_METRIC_LINES,
        old='if line["step"] <= first_step]',
        new='if line["step"] < first_step]',
        claim="metrics.jsonl of a run that was interrupted is that of one that was not.",
        tests=(f"{_OF_RUNS}::test_a_resumed_run_is_bit_identical",),
    ),
    Fault(
        name="a-resumed-run-repeats-lines",
        file=_METRIC_LINES,
        old='if line["step"] <= first_step]',
        new="]",
        claim="metrics.jsonl of a run that was interrupted is that of one that was not.",
        tests=(f"{_OF_RUNS}::test_a_resumed_run_is_bit_identical",),
    ),
    Fault(
        name="tensorboard-hides-the-step-of-the-checkpoint",
        file="msam_scale/monitoring/board.py",
        old="purge_step=first_step + 1",
        new="purge_step=first_step",
        claim="TensorBoard shows each step of a run that was interrupted.",
        tests=(f"{_OF_RUNS}::test_a_resumed_run_is_bit_identical",),
    ),
    Fault(
        name="figures-that-are-not-finite-are-no-json",
        file=_METRIC_LINES,
        old="name: None if isinstance(value, float) and not isfinite(value) else value",
        new="name: value",
        claim="Every line of metrics.jsonl is JSON.",
        tests=(f"{_OF_RUNS}::test_a_run_whose_steps_are_all_skipped_ends_with_a_clear_error",),
    ),
    Fault(
        name="reports-mix-validation-into-training",
        file="msam_scale/monitoring/curves.py",
        old='if line["split"] == split and line.get(name) is not None',
        new="if line.get(name) is not None",
        claim="A report draws training losses as training losses.",
        tests=(f"{_OF_REPORTS}::test_a_report_draws_the_lines_of_its_runs",),
    ),
    Fault(
        name="spikes-are-forgotten-on-resume",
        file=_RUN,
        old='        self._loss_spikes.load(extra.get("loss_spikes"))\n',
        new="",
        claim="A resumed run finds the same loss spikes.",
        tests=(f"{_OF_ROLLBACK}::test_spikes_are_counted_and_named_across_a_restart",),
    ),
    # A run's data, folder and command line.
    Fault(
        name="a-switch-forgets-damaged-samples",
        file=_RUN,
        old="        self._loader.bad_samples.merge(found)\n",
        new="",
        claim="A checkpoint lists every damaged sample that the run has met.",
        tests=(f"{_OF_RANKS}::test_a_run_with_everything_depends_on_no_layout_and_no_restart",),
    ),
    Fault(
        name="ranks-do-not-tell-damaged-samples",
        file=_RUN,
        old='        if self._config.data.on_error == "substitute":\n',
        new='        if self._config.data.on_error == "raise":\n',
        claim="A checkpoint lists the damaged samples that any rank has met.",
        tests=(f"{_OF_RANKS}::test_a_run_with_everything_depends_on_no_layout_and_no_restart",),
    ),
    Fault(
        name="two-processes-in-one-folder",
        file=_RUN_FOLDER,
        old="            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        new="            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)\n",
        claim="Two runs never write into one folder.",
        tests=(f"{_OF_RUNS}::test_a_folder_is_trained_in_by_one_process_at_a_time",),
    ),
    Fault(
        name="another-order-of-samples-goes-on",
        file=_RUN_FOLDER,
        old='_RESULT_KEYS = ("data.transform", "data.order", "data.on_error")',
        new='_RESULT_KEYS = ("data.transform", "data.on_error")',
        claim="A run is not continued with settings that change its result.",
        tests=(f"{_OF_RUNS}::test_a_run_is_not_continued_with_another_result",),
    ),
    Fault(
        name="other-data-go-on",
        file="msam_scale/training/run_folder.py",
        old="        _check_same_data(checkpoint, progress.extra, fingerprint)\n",
        new="",
        claim="A run is not continued on other data.",
        tests=(f"{_OF_RUNS}::test_a_run_is_not_continued_on_other_data",),
    ),
    Fault(
        name="only-the-first-mistake-is-named",
        file="msam_scale/training/findings.py",
        old="            raise ConfigError(self._problems)",
        new="            raise ConfigError(self._problems[:1])",
        claim="Everything that is wrong with a run is said together.",
        tests=(f"{_OF_MISTAKES}::test_a_mistake_is_named_and_nothing_is_written",),
    ),
    Fault(
        name="settings-before-an-option-are-lost",
        file="launch/cli.py",
        old="arguments.overrides = [*arguments.overrides, *rest]",
        new="arguments.overrides = rest",
        claim="Every setting of the command line counts, wherever it stands.",
        tests=(f"{_OF_THE_COMMAND}::test_options_may_stand_anywhere",),
    ),
    Fault(
        name="options-may-be-cut-short",
        file="launch/cli.py",
        old="            command.NAME, help=command.HELP, description=command.HELP, "
        "allow_abbrev=False\n",
        new="            command.NAME, help=command.HELP, description=command.HELP\n",
        claim="An unknown option is refused, not taken for a longer one.",
        tests=("tests/launch/test_sharpness.py::test_mistakes_exit_with_2_and_one_line",),
    ),
    Fault(
        name="settings-need-torch",
        file="launch/cli.py",
        old="from launch.exit_codes import FAILURE, INTERRUPTED, USER_ERROR\n",
        new="from launch.exit_codes import FAILURE, INTERRUPTED, USER_ERROR\n"
        "from launch.local_ranks import start_ranks  # noqa: F401\n"
        "from msam_scale.ranks import join  # noqa: F401\n",
        claim="Looking at a config takes no seconds of imports.",
        tests=("tests/test_start_up.py::test_nothing_is_imported_before_it_is_used",),
    ),
    Fault(
        name="a-checkpoint-is-read-with-pickle",
        file="msam_scale/checkpoint/json_files.py",
        old="import json\n",
        new="import json\nimport pickle  # noqa: F401\n",
        claim="Nothing that is read can run.",
        tests=("tests/security/test_source_tree.py",),
    ),
)
