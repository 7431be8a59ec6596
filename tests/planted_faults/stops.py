"""Faults of stopping in order, of the watchdog and of ranks that are lost."""

from __future__ import annotations

from tests.planted_faults import Fault

_RUN = "msam_scale/training/run.py"
_STOP = "msam_scale/supervision/stop_request.py"
_HEARTBEATS = "msam_scale/supervision/heartbeats.py"
_WATCHDOG = "msam_scale/supervision/watchdog.py"
_RANK = "launch/train.py"
_OF_COMPILATION = "tests/test_deepspeed_compilation.py"
_OF_STOPS = "tests/supervision/test_stop_request.py"
_OF_THE_WATCHDOG = "tests/supervision/test_watchdog.py"
_OF_MEASUREMENTS = "tests/supervision/test_due_measurements.py"
_OF_MISTAKES = "tests/training/test_training_mistakes.py"
_OF_LAUNCHERS = "tests/launch/test_launchers.py"

FAULTS = (
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
        name="a-closed-terminal-kills",
        file="msam_scale/supervision/signals.py",
        old="signal.SIGINT, signal.SIGHUP)",
        new="signal.SIGINT)",
        claim="A run whose terminal is closed saves and ends.",
        tests=(f"{_OF_STOPS}::test_how_a_signalled_process_ends",),
    ),
    Fault(
        name="a-stop-leaves-the-compiler",
        file=_STOP,
        old="                        child.terminate()\n",
        new="                        child.status()\n",
        claim="A stop while DeepSpeed compiles ends the compiler and the run.",
        tests=(f"{_OF_COMPILATION}::test_a_stop_during_a_build_ends_the_compiler",),
    ),
    Fault(
        name="a-build-that-is-stopped-is-a-failed-one",
        file=_STOP,
        old='            if self._asked:\n                _end(_name(self._asked), "stopped before',
        new='            if False:\n                _end(_name(self._asked), "stopped before',
        claim="A run that is stopped while it is set up ends with the code of a stopped run.",
        tests=(f"{_OF_COMPILATION}::test_a_stop_during_a_build_ends_the_compiler",),
    ),
    Fault(
        name="a-failed-build-is-a-refused-setting",
        file="msam_scale/optimization/from_config.py",
        old="            compile_code_of(cls)\n",
        new="",
        claim="A failed build of DeepSpeed's says in a line what is missing.",
        tests=(f"{_OF_COMPILATION}::test_a_build_that_fails_is_a_line",),
    ),
    Fault(
        name="the-flight-recorder-stays-in-memory",
        file=_WATCHDOG,
        old='            os.write(writing, b"1")\n',
        new="",
        claim="A rank that hangs in a collective has torch dump its flight recorder.",
        tests=(
            f"{_OF_THE_WATCHDOG}::test_torchs_flight_recorder_is_asked_for_the_last_collectives",
        ),
    ),
    Fault(
        name="an-orphan-lives-on",
        file="msam_scale/supervision/launcher.py",
        old="        if self.launchers or self._is_orphan:\n",
        new="        if len(self.launchers) > 1:\n",
        claim="A rank whose launcher is killed saves and ends.",
        tests=(f"{_OF_STOPS}::test_a_rank_notices_that_its_launcher_is_killed",),
    ),
    Fault(
        name="a-killed-loader-is-noticed-where-it-is-waited-for-alone",
        file="launch/train.py",
        old="if (killed := killed_worker(error)) is not None:",
        new="if (killed := killed_worker(error)) is not None and error.args == ():",
        claim="A loader that is killed is one line and exit code 2, whatever the rank does.",
        tests=("tests/supervision/test_stopped_ranks.py",),
    ),
    Fault(
        name="whoever-takes-over-an-orphan-is-taken-for-its-launcher",
        file="msam_scale/supervision/launcher.py",
        old="and not _may_launch(self._parent)",
        new="and False",
        claim="A rank whose launcher was killed before it looked ends.",
        tests=(f"{_OF_STOPS}::test_a_rank_that_comes_too_late_to_see_its_launcher_notices_it",),
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
)
