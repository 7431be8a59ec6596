"""A run that nothing disturbs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from live_runs import metric_lines, saved_step, weights
from undisturbed import CONFIG, SETTINGS

from launch.cli import main


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Iterator[str]:
    """A config in a folder that is the working folder, with an undisturbed run `whole`."""
    folder = tmp_path_factory.mktemp("stopping")
    path = folder / "small.yaml"
    path.write_text(CONFIG.replace("DIGITS", str(digits)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", str(path), "run.name=whole", *SETTINGS]) == 0
        yield str(path)


@pytest.fixture
def goes_on(config: str) -> Callable[[str], None]:
    """Goes on with a run in this process, to what the undisturbed one has come to."""

    def check(name: str) -> None:
        assert 0 < saved_step(name) < 16
        assert main(["train", config, f"run.name={name}", *SETTINGS]) == 0
        expected = weights("whole")
        for key, tensor in weights(name).items():
            torch.testing.assert_close(tensor, expected[key], rtol=1e-8, atol=1e-10)
        kinds = [(line["step"], line["split"]) for line in metric_lines(name)]
        assert kinds == [(line["step"], line["split"]) for line in metric_lines("whole")]

    return check
