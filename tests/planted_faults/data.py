"""Faults of the data side: indexes, reading, damage, caches, sources, preparation, archives."""

from tests.planted_faults import Fault

_INDEX = "tests/data_pipelines/test_data_index.py"
_INDEX_BUILD = "tests/data_pipelines/test_data_index_build.py"
_READING = "tests/data_pipelines/test_data_reading.py"
_DAMAGE = "tests/data_pipelines/test_data_damage.py"
_CACHE = "tests/data_pipelines/test_data_cache.py"
_SOURCES = "tests/data_pipelines/test_data_sources.py"
_HTTP = "tests/data_pipelines/test_data_sources_http.py"
_DECODING = "tests/data_pipelines/test_data_decoding.py"
_TRANSFORMS = "tests/data_pipelines/test_data_transforms.py"
_CROPS = "tests/data_pipelines/test_data_presets_crops.py"
_RESIZING = "tests/data_pipelines/test_data_presets_resizing.py"
_LOADING = "tests/data_pipelines/test_data_loading.py"
_MEMORY = "tests/data_pipelines/test_data_loading_memory.py"
_PROCESSES = "tests/data_pipelines/test_data_loading_processes.py"
_STATE = "tests/data_pipelines/test_data_loading_state.py"
_TEXT = "tests/data_pipelines/test_data_loading_text.py"
_PREPARE = "tests/data_pipelines/test_data_prepare.py"
_RESUME = "tests/data_pipelines/test_data_prepare_resume.py"
_IMAGES = "tests/data_pipelines/test_data_prepare_images.py"
_TEXTS = "tests/data_pipelines/test_data_prepare_texts.py"
_ARCHIVES = "tests/security/test_hostile_archives.py"
_SHARDS = "tests/security/test_hostile_shards.py"
_INDEXES = "tests/security/test_hostile_indexes.py"

FAULTS = (
    Fault(
        name="shards-in-the-order-they-were-scanned",
        file="data_pipelines/index/build.py",
        old="    return [found[task.path.name] for task in tasks]\n",
        new="    return list(found.values())\n",
        claim="The number of processes that make an index changes nothing of it.",
        tests=(f"{_INDEX_BUILD}::test_number_of_processes_changes_no_byte",),
    ),
    Fault(
        name="kept-scan-of-other-columns",
        file="data_pipelines/index/shard_table.py",
        old="        and findings.ignored_columns == tuple(sorted(task.ignored_columns))\n",
        new="",
        claim="What an interrupted start has scanned is used only for the same question.",
        tests=(f"{_INDEX_BUILD}::test_what_was_scanned_is_not_scanned_again",),
    ),
    Fault(
        name="fingerprint-without-checksums",
        file="data_pipelines/index/format.py",
        old="[shard.bytes, shard.num_samples, shard.sha256]",
        new="[shard.bytes, shard.num_samples]",
        claim="An index that was changed in anything that readers rely on is not opened.",
        tests=(f"{_INDEX}::test_changed_metadata_is_not_opened",),
    ),
    Fault(
        name="tars-that-end-early-are-indexed",
        file="data_pipelines/index/scan.py",
        old="    if num_zeros < 2 * _BLOCK:\n",
        new="    if num_zeros < 0:\n",
        claim="A tar that was cut short between two files is not indexed.",
        tests=(f"{_INDEX_BUILD}::test_damaged_tars_are_not_indexed",),
    ),
    Fault(
        name="shards-of-any-size-are-opened",
        file="data_pipelines/index/sample_index.py",
        old="        if size != shard.bytes:\n",
        new="        if size < shard.bytes:\n",
        claim="A shard that was changed since it was indexed is named when the split is opened.",
        tests=(f"{_INDEX}::test_shards_that_are_missing_or_of_another_size_are_named",),
    ),
    Fault(
        name="runs-forget-the-longest-sample",
        file="data_pipelines/reading/runs.py",
        old="run.stop = max(run.stop, stop)",
        new="run.stop = stop",
        claim="Reading neighbours together gives all bytes of every one of them.",
        tests=(f"{_READING}::test_runs_cover_every_sample_once_and_stay_bounded",),
    ),
    Fault(
        name="checksums-are-not-compared",
        file="data_pipelines/reading/shard_reader.py",
        old=(
            "        if found != checksum:\n"
            "            raise _DamagedError(\n"
            '                f"damaged or not what was indexed'
        ),
        new=(
            "        if found > checksum > found:\n"
            "            raise _DamagedError(\n"
            '                f"damaged or not what was indexed'
        ),
        claim="A damaged sample is named, not trained on.",
        tests=(f"{_DAMAGE}::test_damage_while_in_use_is_named",),
    ),
    Fault(
        name="one-damaged-sample-too-many",
        file="data_pipelines/reading/bad_samples.py",
        old="        if len(self._found) >= self._most:\n",
        new="        if len(self._found) > self._most:\n",
        claim="More damaged samples than allowed are an error.",
        tests=(f"{_DAMAGE}::test_more_damage_than_allowed_is_an_error",),
    ),
    Fault(
        name="stand-ins-are-the-same-every-epoch",
        file="data_pipelines/reading/stand_ins.py",
        old='derive_key("standin", seed, epoch, sample_id, attempt)',
        new='derive_key("standin", seed, sample_id, attempt)',
        claim="Another sample stands in for a damaged one in each epoch.",
        tests=(f"{_DAMAGE}::test_stand_ins_depend_on_nothing_but_seed_epoch_and_sample",),
    ),
    Fault(
        name="stand-ins-are-longer-texts",
        file="data_pipelines/reading/stand_ins.py",
        old="np.flatnonzero(lengths <= lengths[sample_id])",
        new="np.flatnonzero(lengths >= lengths[sample_id])",
        claim="A damaged text is replaced by none longer than itself.",
        tests=(f"{_DAMAGE}::test_text_is_replaced_by_none_longer_than_itself",),
    ),
    Fault(
        name="workers-keep-their-bad-samples",
        file="data_pipelines/loading/worker_pool.py",
        old="            self._bad_samples.merge(loaded.bad_samples)\n",
        new="",
        claim="Damaged samples that loader processes met are listed and counted.",
        tests=(f"{_STATE}::test_replaced_samples_are_listed_and_kept",),
    ),
    Fault(
        name="batches-are-handed-over-half-loaded",
        file="data_pipelines/loading/worker_pool.py",
        old=(
            "            if num_loaded < under_way.num_samples:\n"
            "                continue\n"
            "            self._parts.under_way.popleft()\n"
        ),
        new=(
            "            if num_loaded >= under_way.num_samples:\n"
            "                self._parts.under_way.popleft()\n"
        ),
        claim="A batch is handed over when all of its parts are loaded.",
        tests=(f"{_MEMORY}::test_batches_of_several_parts_are_whole",),
    ),
    Fault(
        name="lent-memory-is-taken-back",
        file="data_pipelines/loading/slots.py",
        old="deque(set(range(self._memory.num_slots)) - self._lent)",
        new="deque(range(self._memory.num_slots))",
        claim="A batch stays as it is for as long as it is used.",
        tests=(f"{_MEMORY}::test_slots_of_an_ended_iteration_come_back_but_not_those_in_use",),
    ),
    Fault(
        name="loading-draws-from-the-global-stream",
        file="data_pipelines/loading/worker_pool.py",
        old="            generator=torch.Generator(),\n",
        new="",
        claim="Loading leaves the global random streams alone.",
        tests=(f"{_LOADING}::test_iterating_again_starts_again_even_after_a_break",),
    ),
    Fault(
        name="copies-of-another-row",
        file="data_pipelines/loading/dataset.py",
        old="                array[row] = array[first]\n",
        new="                array[row] = array[row - 1]\n",
        claim="A sample that comes twice in a batch is the same both times.",
        tests=("tests/data_pipelines/test_data_loading_mixing.py",),
    ),
    Fault(
        name="the-oldest-use-is-thrown-away-last",
        file="data_pipelines/sources/shard_cache.py",
        old="        for each in sorted(kept):\n",
        new="        for each in sorted(kept, reverse=True):\n",
        claim="The cache keeps the shards that were used last.",
        tests=(f"{_CACHE}::test_least_recently_used_shards_are_thrown_away",),
    ),
    Fault(
        name="unfinished-downloads-do-not-count",
        file="data_pipelines/sources/shard_cache.py",
        old="            if path.suffix in (_SHARD_SUFFIX, _PARTIAL_SUFFIX):\n",
        new="            if path.suffix == _SHARD_SUFFIX:\n",
        claim="What a killed download left counts towards the limit until it is cleared away.",
        tests=(f"{_CACHE}::test_killed_download_is_waited_for_by_nobody_and_cleared_away",),
    ),
    Fault(
        name="fetched-shards-are-not-compared",
        file="data_pipelines/sources/shard_cache.py",
        old="    elif digest.hexdigest() != file.sha256:\n",
        new="    elif not digest.hexdigest():\n",
        claim="A shard that was damaged on its way is fetched again.",
        tests=(f"{_CACHE}::test_download_with_wrong_bytes_is_fetched_again",),
    ),
    Fault(
        name="broken-downloads-stay",
        file="data_pipelines/sources/shard_cache.py",
        old=(
            "            os.close(descriptor)\n"
            "            partial.unlink(missing_ok=True)\n            raise\n"
        ),
        new="            os.close(descriptor)\n            raise\n",
        claim="A download that breaks leaves nothing in the cache.",
        tests=(f"{_CACHE}::test_download_that_breaks_leaves_nothing",),
    ),
    Fault(
        name="downloads-begin-again-from-the-start",
        file="data_pipelines/sources/http_folder.py",
        old="with self._request(name, start=position, stop=None) as answer:",
        new="with self._request(name, start=0, stop=None) as answer:",
        claim="A download that broke goes on where it was.",
        tests=(f"{_HTTP}::test_whole_files_go_on_where_they_stopped",),
    ),
    Fault(
        name="long-downloads-bear-few-failures",
        file="data_pipelines/sources/http_folder.py",
        old="                            retries.succeeded()\n",
        new="                            pass\n",
        claim="Failures are forgotten once a download gets on.",
        tests=(f"{_HTTP}::test_long_files_bear_more_failures_than_are_borne_in_a_row",),
    ),
    Fault(
        name="retry-after-is-not-heard",
        file="data_pipelines/sources/http_requests.py",
        old="retry_after=float(seconds or 0)",
        new="retry_after=0.0",
        claim="A server that asks for a wait gets it.",
        tests=(f"{_HTTP}::test_waits_grow_and_follow_the_server",),
    ),
    Fault(
        name="shifted-ranges-are-believed",
        file="data_pipelines/sources/http_requests.py",
        old="        if first != start or (stop is not None and after_last > stop):\n",
        new="        if stop is not None and after_last > stop:\n",
        claim="An answer with other bytes than were asked for is refused.",
        tests=(f"{_HTTP}::test_answers_that_are_wrong_are_named_at_once",),
    ),
    Fault(
        name="passwords-in-messages",
        file="data_pipelines/sources/redaction.py",
        old='_USER = re.compile(r"(?<=://)[^/?#\\s]*@")',
        new='_USER = re.compile(r"(?<=://)[^/?#\\s:]*@")',
        claim="No message shows a password of a location.",
        tests=(f"{_SOURCES}::test_locations_without_their_secrets",),
    ),
    Fault(
        name="names-reach-the-shell-unquoted",
        file="data_pipelines/sources/command_pipe.py",
        old="self._command.replace(_PLACEHOLDER, shlex.quote(name))",
        new="self._command.replace(_PLACEHOLDER, name)",
        claim="A name of a file runs nothing in the shell.",
        tests=(f"{_SOURCES}::test_failed_and_short_commands_are_named",),
    ),
    Fault(
        name="sixteen-bits-are-clipped",
        file="data_pipelines/decoding/pillow_images.py",
        old="(np.asarray(image) >> 8).astype(np.uint8)",
        new="np.clip(np.asarray(image), 0, 255).astype(np.uint8)",
        claim="Of grey images of 16 bits the upper 8 are kept.",
        tests=(f"{_DECODING}::test_grey_of_16_bits_keeps_the_upper_8",),
    ),
    Fault(
        name="statistics-with-a-slip",
        file="data_pipelines/transforms/statistics.py",
        old="(0.229, 0.224, 0.225)",
        new="(0.229, 0.224, 0.255)",
        claim="Presets normalise with the published statistics.",
        tests=(f"{_TRANSFORMS}::test_statistics_are_the_published_ones",),
    ),
    Fault(
        name="cutout-is-off-its-centre",
        file="data_pipelines/transforms/cutout.py",
        old="[:, np.newaxis] - self.length // 2\n",
        new="[:, np.newaxis]\n",
        claim="Cutout is that of the paper's own code.",
        tests=(f"{_TRANSFORMS}::test_cutout_is_that_of_its_authors",),
    ),
    Fault(
        name="short-side-from-the-width",
        file="data_pipelines/transforms/evaluation.py",
        old="        if height <= width:\n",
        new="        if height >= width:\n",
        claim="Evaluation resizes as timm and torchvision do.",
        tests=(f"{_RESIZING}::test_evaluation_as_timm_and_torchvision_do_it",),
    ),
    Fault(
        name="crops-leave-out-the-last-place",
        file="data_pipelines/transforms/random_crops.py",
        old="left=below(words[3], width - crop_width + 1),",
        new="left=below(words[3], max(1, width - crop_width)),",
        claim="Random crops have the distribution of the code they follow.",
        tests=(f"{_CROPS}::test_the_bounds_are_those_of_the_originals",),
    ),
    Fault(
        name="fillers-are-attended-to",
        file="data_pipelines/loading/text_batches.py",
        old='            arrays["attention_mask"][row, length:] = 0\n',
        new="",
        claim="What texts are filled up with is masked.",
        tests=(f"{_TEXT}::test_batches_hold_the_texts_and_fillers",),
    ),
    Fault(
        name="last-block-of-evaluation-is-left-out",
        file="data_pipelines/loading/evaluation.py",
        old="range(rank * self._batch_size, self._num_samples, self._num_ranks * self._batch_size)",
        new="range(rank * self._batch_size, self._num_samples - self._batch_size + 1, "
        "self._num_ranks * self._batch_size)",
        claim="Evaluation sees every sample exactly once on any number of ranks.",
        tests=(f"{_LOADING}::test_evaluation_has_every_sample_once",),
    ),
    Fault(
        name="evaluation-of-some-takes-the-first",
        file="data_pipelines/loading/evaluation.py",
        old="            ids = self.sample_ids[start : start + self.batch_size]\n",
        new="            ids = np.arange(len(self.sample_ids))[start:][: self.batch_size]\n",
        claim="Evaluation of some samples is of these.",
        tests=(f"{_LOADING}::test_evaluation_of_some_samples_is_of_these",),
    ),
    Fault(
        name="all-ranks-have-as-many-blocks",
        file="data_pipelines/loading/evaluation.py",
        old="        return len(self._starts(rank))\n",
        new="        return len(self._blocks)\n",
        claim="A rank knows how many blocks of evaluation every other rank has.",
        tests=(f"{_LOADING}::test_evaluation_has_every_sample_once",),
    ),
    Fault(
        name="staged-input-is-never-made-anew",
        file="data_pipelines/preparation/staging.py",
        old='        if (folder / _MADE_FROM_FILE).read_text(encoding="utf-8") == text:\n',
        new="        if (folder / _MADE_FROM_FILE).is_file():\n",
        claim="A preparation that goes on with other input does not use the old one.",
        tests=(f"{_RESUME}::test_start_that_did_something_leaves_it_for_the_same_input",),
    ),
    Fault(
        name="kept-shards-are-not-checked",
        file="data_pipelines/preparation/write_shard.py",
        old="return record if sha256_of_file(task.path) == record.sha256 else None",
        new="return record",
        claim="A kept shard that was changed is written again.",
        tests=(f"{_RESUME}::test_kept_shard_that_was_changed_is_written_again",),
    ),
    Fault(
        name="validation-samples-are-trained-on",
        file="data_pipelines/preparation/recipe.py",
        old="    bounds = {first: (0, num_samples - num_val)}\n",
        new="    bounds = {first: (0, num_samples)}\n",
        claim="A split by a fraction has every sample in one split.",
        tests=(f"{_IMAGES}::test_folders_are_split_by_a_fraction",),
    ),
    Fault(
        name="validation-labels-are-one-off",
        file="data_pipelines/preparation/imagenet.py",
        old="kit.validation[int(match[1]) - 1]",
        new="kit.validation[int(match[1]) - 2]",
        claim="ImageNet's validation images have the published labels.",
        tests=(f"{_IMAGES}::test_imagenet_from_the_published_tars",),
    ),
    Fault(
        name="another-input-is-taken-for-the-same",
        file="data_pipelines/preparation/prepare.py",
        old="    _check_same_input(recipe, directory, record, options, progress=progress)\n",
        new="",
        claim="A finished data set is not taken for one of another input.",
        tests=(f"{_PREPARE}::test_other_input_is_not_taken_for_the_one_that_is_there",),
    ),
    Fault(
        name="cut-texts-are-not-counted",
        file="data_pipelines/preparation/tokenised_texts.py",
        old="            num_cut += cut\n",
        new="",
        claim="How many texts were cut is said.",
        tests=(f"{_TEXTS}::test_long_texts_are_cut_and_counted_once",),
    ),
    Fault(
        name="names-climb-out-of-tars",
        file="data_pipelines/index/scan.py",
        old='member.name.startswith("/") or ".." in member.name.split("/")',
        new='member.name.startswith(("/", ".."))',
        claim="Shards whose names lead out of their folder are refused.",
        tests=(f"{_SHARDS}::test_hostile_shards_are_refused",),
    ),
    Fault(
        name="huge-headers-are-believed",
        file="data_pipelines/tar_headers.py",
        old="        if not 0 <= size <= _MOST_HEADER_BYTES:\n",
        new="        if not 0 <= size:\n",
        claim="Archives that ask for memory without end are refused.",
        tests=(f"{_SHARDS}::test_hostile_shards_are_refused",),
    ),
    Fault(
        name="matlab-bombs-are-unpacked",
        file="data_pipelines/preparation/imagenet.py",
        old="    _check_unpacked(content)\n",
        new="",
        claim="Compressed parts that unpack to far more than published are refused.",
        tests=(f"{_ARCHIVES}::test_hostile_development_kits_are_refused",),
    ),
    Fault(
        name="memo-places-are-believed",
        file="data_pipelines/preparation/safe_pickle.py",
        old="        _check_memo(content)\n",
        new="",
        claim="A pickle of some bytes cannot ask for gigabytes.",
        tests=(f"{_ARCHIVES}::test_arrays_and_pickles_are_as_large_as_their_bytes",),
    ),
    Fault(
        name="offsets-wrap-around",
        file="data_pipelines/index/plausible.py",
        old="(sizes <= num_bytes) & (offsets <= num_bytes - np.minimum(sizes, num_bytes))",
        new="offsets + sizes <= num_bytes",
        claim="An index whose offsets lead out of its shards is refused.",
        tests=(f"{_INDEXES}::test_hostile_indexes_are_refused",),
    ),
    Fault(
        name="numbers-of-classes-sorted-as-text",
        file="data_pipelines/preparation/text_classes.py",
        old="        return {label: int(values[label]) for label in seen}\n",
        new="        return {label: place for place, label in enumerate(sorted(seen))}\n",
        claim="The label 2.0 is class 2, whatever else there is.",
        tests=(f"{_TEXTS}::test_labels_that_can_be_believed",),
    ),
    Fault(
        name="rows-named-by-the-line-they-end-in",
        file="data_pipelines/preparation/text_rows.py",
        old="                line = reader.line_num + 1\n",
        new="                line = reader.line_num\n",
        claim="What is wrong with a row is said with the line the row begins in.",
        tests=(f"{_TEXTS}::test_a_fault_of_a_csv_names_its_line",),
    ),
    Fault(
        name="splits-in-lower-case-only",
        file="data_pipelines/sources/file_names.py",
        old="filter(str.isalpha, name.casefold())",
        new="filter(str.isalpha, name)",
        claim="Train and Val are splits and no classes.",
        tests=(f"{_IMAGES}::test_splits_are_found_however_they_are_called",),
    ),
    Fault(
        name="folds-become-classes",
        file="data_pipelines/preparation/image_folder.py",
        old="        if len(shared) > 1:\n",
        new="        if len(shared) > 2:\n",
        claim="Folders that hold the same two folders are refused as classes.",
        tests=(f"{_IMAGES}::test_folders_that_would_become_wrong_classes_are_refused",),
    ),
    Fault(
        name="samples-that-a-mac-leaves-behind",
        file="data_pipelines/index/scan.py",
        old=" or is_no_member(member.name):\n",
        new=":\n",
        claim="What a Mac puts into archives is in no sample and is none.",
        tests=(f"{_INDEX_BUILD}::test_folders_hidden_files_and_those_of_a_mac_are_no_samples",),
    ),
    Fault(
        name="an-index-forgets-where-its-shards-are",
        file="data_pipelines/index/build.py",
        old="                shards_in=shards_in,\n",
        new="",
        claim="An index that lies elsewhere finds its shards, local and remote ones.",
        tests=(f"{_SOURCES}::test_the_index_of_local_and_remote_shards_may_lie_elsewhere",),
    ),
    Fault(
        name="loaders-start-as-python-likes",
        file="data_pipelines/loading/worker_pool.py",
        old="            multiprocessing_context=START_METHOD if num_workers else None,\n",
        new="",
        claim="Loader processes start in one way, whatever Python's default is.",
        tests=(f"{_PROCESSES}::test_loaders_start_as_they_do_whatever_the_default_is",),
    ),
    Fault(
        name="a-loader-for-every-evaluation",
        file="msam_scale/training/evaluation.py",
        old="        if self._loader is None or batch_size != self._batch_size:",
        new="        if self._loader is None or batch_size == self._batch_size:",
        claim="The validation data are loaded by the same processes in every evaluation.",
        tests=(
            "tests/training/test_training_data.py"
            "::test_validation_data_are_loaded_by_the_same_processes_each_time",
        ),
    ),
)
