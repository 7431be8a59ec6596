"""Faults of the order: which sample comes when, how it is augmented, and where a run goes on."""

from tests.planted_faults import Fault

_ORDER = "tests/data_pipelines/test_data_order.py"
_LOADING = "tests/data_pipelines/test_data_loading.py"
_STATE = "tests/data_pipelines/test_data_loading_state.py"
_MIXING = "tests/data_pipelines/test_data_loading_mixing.py"
_TEXT = "tests/data_pipelines/test_data_loading_text.py"
_ADAPTERS = "tests/data_pipelines/test_data_adapters.py"

FAULTS = (
    Fault(
        name="cycle-walking-stops-early",
        file="data_pipelines/order/permutation.py",
        old="    while outside.size:\n",
        new="    if outside.size:\n",
        claim="In an epoch every sample comes exactly once.",
        tests=(f"{_ORDER}::test_permutations_of_every_small_size_are_one_to_one",),
    ),
    Fault(
        name="feistel-with-few-rounds",
        file="data_pipelines/order/permutation.py",
        old="_NUM_ROUNDS = 12",
        new="_NUM_ROUNDS = 4",
        claim="Every order of the samples is equally likely, and an order never changes.",
        tests=(f"{_ORDER}::test_orders_are_pinned",),
    ),
    Fault(
        name="epoch-left-out-of-the-global-order",
        file="data_pipelines/order/global_order.py",
        old='key=derive_key("order", self.seed, epoch)',
        new='key=derive_key("order", self.seed)',
        claim="Every epoch has another order.",
        tests=(f"{_ORDER}::test_orders_are_pinned",),
    ),
    Fault(
        name="lanes-keep-the-first-epoch",
        file="data_pipelines/order/lane_order.py",
        old="if self._epoch is None or self._epoch.stream.epoch != epoch:",
        new="if self._epoch is None:",
        claim="An order is a pure function of seed and epoch, whatever was asked for before.",
        tests=(f"{_ORDER}::test_orders_are_pinned",),
    ),
    Fault(
        name="window-keeps-the-first-epoch",
        file="data_pipelines/order/window_order.py",
        old="if self._epoch is None or self._epoch.stream.epoch != epoch:",
        new="if self._epoch is None:",
        claim="An order is a pure function of seed and epoch, whatever was asked for before.",
        tests=(f"{_ORDER}::test_a_window_reads_from_its_shards_only_and_mixes_them",),
    ),
    Fault(
        name="windows-cross-lanes",
        file="data_pipelines/order/lane_order.py",
        old="number_in_lane % self._shards_per_window",
        new="np.arange(len(pieces)) % self._shards_per_window",
        claim="A rank that takes whole lanes reads the shards of its own lanes only.",
        tests=(f"{_ORDER}::test_a_rank_that_takes_whole_lanes_reads_its_own_shards",),
    ),
    Fault(
        name="rest-behind-the-lanes-is-one-place-off",
        file="data_pipelines/order/lane_order.py",
        old="behind = places >= self._num_lanes * self._lane_size",
        new="behind = places > self._num_lanes * self._lane_size",
        claim="In an epoch every sample comes exactly once.",
        tests=(f"{_ORDER}::test_places_behind_the_lanes_come_once",),
    ),
    Fault(
        name="lanes-take-sorted-shards",
        file="data_pipelines/order/registry.py",
        old=(
            'parameters.get("shards", _SHARDS_PER_LANE_WINDOW),\n    )\n'
            "    check_classes_are_mixed(index, order=order.identity)\n"
        ),
        new='parameters.get("shards", _SHARDS_PER_LANE_WINDOW),\n    )\n',
        claim="Orders by shard refuse shards that hold their samples class by class.",
        tests=(f"{_ORDER}::test_shards_sorted_by_class_are_refused",),
    ),
    Fault(
        name="batch-augmentation-forgets-the-epoch",
        file="data_pipelines/loading/image_batches.py",
        old="            epochs=part.epoch,\n",
        new="            epochs=0,\n",
        claim="A sample is augmented anew in every epoch.",
        tests=(f"{_LOADING}::test_images_augmented_together_are_those_augmented_one_by_one",),
    ),
    Fault(
        name="augmentation-forgets-the-sample",
        file="data_pipelines/order/random_streams.py",
        old="words = (checked_seed(seed), epoch, sample_id)",
        new="words = (checked_seed(seed), epoch, 0)",
        claim="Every sample has an augmentation of its own.",
        tests=(f"{_ORDER}::test_augmentation_streams_are_pinned_and_depend_on_each_word_alone",),
    ),
    Fault(
        name="adapter-augments-for-the-wrong-epoch",
        file="data_pipelines/adapters/torch_dataset.py",
        old="            yield [(item.epoch, sample_id) for sample_id in item.sample_ids.tolist()]",
        new="            yield [(0, sample_id) for sample_id in item.sample_ids.tolist()]",
        claim="torch's DataLoader gets the batches of the project's own loader.",
        tests=(f"{_ADAPTERS}::test_torch_dataloader_gets_the_same_batches",),
    ),
    Fault(
        name="workers-take-the-wrong-items-of-a-pipeline",
        file="data_pipelines/adapters/webdataset_stage.py",
        old="islice(self._plan, number, None, num_workers)",
        new="islice(self._plan, 0, None, num_workers)",
        claim="webdataset pipelines get every item once with any number of workers.",
        tests=(f"{_ADAPTERS}::test_webdataset_pipeline_gets_the_same_batches",),
    ),
    Fault(
        name="partners-from-the-whole-mini-batch",
        file="data_pipelines/loading/schedule.py",
        old="partners = micro_batch[draw.partners[positions - number * size]]",
        new="partners = mini_batch[draw.partners[positions - number * size]]",
        claim="Samples are mixed with partners of their own micro-batch.",
        tests=(f"{_MIXING}::test_each_sample_has_its_partner_in_the_micro_batch",),
    ),
    Fault(
        name="mixing-draws-once-a-step",
        file="data_pipelines/loading/schedule.py",
        old="                    micro_batch=number,\n",
        new="                    micro_batch=0,\n",
        claim="Every micro-batch draws its own mixing.",
        tests=(f"{_MIXING}::test_each_sample_has_its_partner_in_the_micro_batch",),
    ),
    Fault(
        name="one-kind-of-mixing-for-all-micro-batches",
        file="data_pipelines/loading/mixing.py",
        old='derive_key("mixwhich", *keys) & 1 == 1',
        new='derive_key("mixwhich", *keys[:3]) & 1 == 1',
        claim="Where mixup and cutmix are both wanted, each micro-batch draws one of them.",
        tests=(f"{_MIXING}::test_cutmix_and_the_choice_between_both",),
    ),
    Fault(
        name="text-is-filled-up-to-its-own-part",
        file="data_pipelines/loading/schedule.py",
        old="int(self.lengths[micro_batch].max())",
        new="int(self.lengths[sample_ids].max())",
        claim="Batches of text do not depend on how a micro-batch is spread over ranks.",
        tests=(f"{_TEXT}::test_parts_of_a_micro_batch_are_filled_up_alike",),
    ),
    Fault(
        name="resumed-loader-counts-from-its-start",
        file="data_pipelines/loading/micro_batches.py",
        old="steps_done = self._plan.steps.start + self._num_items_yielded // items_per_step",
        new="steps_done = self._num_items_yielded // items_per_step",
        claim="A run that was resumed can be saved and resumed again.",
        tests=(f"{_STATE}::test_going_on_gives_the_rest",),
    ),
    Fault(
        name="loaded-state-keeps-the-old-count",
        file="data_pipelines/loading/micro_batches.py",
        old='        self.bad_samples.load_state(saved.model_dump()["bad_samples"])\n'
        "        self._num_items_yielded = 0\n",
        new='        self.bad_samples.load_state(saved.model_dump()["bad_samples"])\n',
        claim="A state that was loaded into a used loader is what the loader says of itself.",
        tests=(f"{_STATE}::test_going_on_gives_the_rest",),
    ),
    Fault(
        name="bad-samples-are-lost-at-a-resume",
        file="data_pipelines/loading/micro_batches.py",
        old='        self.bad_samples.load_state(saved.model_dump()["bad_samples"])\n',
        new="",
        claim="The list of damaged samples goes on across a resume and counts against its limit.",
        tests=(f"{_STATE}::test_replaced_samples_are_listed_and_kept",),
    ),
    Fault(
        name="another-batch-size-within-an-epoch",
        file="data_pipelines/loading/state.py",
        old='for what in ("order", "batch_size", "micro_batches")',
        new='for what in ("order", "micro_batches")',
        claim="What would lose samples of an epoch is refused.",
        tests=(f"{_STATE}::test_what_would_lose_samples_is_refused",),
    ),
    Fault(
        name="steps-are-not-converted-at-an-epochs-end",
        file="data_pipelines/loading/state.py",
        old="return saved.step // steps_per_epoch * (num_samples // now.batch_size)",
        new="return saved.step",
        claim="With another batch size from an epoch's end on, a run goes on at that epoch.",
        tests=(f"{_STATE}::test_batch_size_may_change_at_the_end_of_an_epoch",),
    ),
    Fault(
        name="other-data-are-resumed-on",
        file="data_pipelines/loading/state.py",
        old='for what in ("fingerprint", "seed"):',
        new='for what in ("seed",):',
        claim="A state is refused by a loader of other data.",
        tests=(f"{_STATE}::test_other_data_and_damaged_states_are_named",),
    ),
    Fault(
        name="positions-are-sorted",
        file="data_pipelines/loading/schedule.py",
        old="positions=[np.asarray(item, dtype=np.int64) for item in positions]",
        new="positions=[np.sort(np.asarray(item, dtype=np.int64)) for item in positions]",
        claim="Batches come in the order of the positions that were asked for.",
        tests=(f"{_LOADING}::test_positions_pick_in_their_order",),
    ),
)
