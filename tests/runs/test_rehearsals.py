"""Every packaged config's rehearsal, `smoke=true`, is small: what its studies ask for first, before
anything is trained."""

import pytest

from steering.commands.studies import options_of
from steering.config import load_config
from steering.packaged import packaged_configs
from steering.runs.ask import with_parents_first
from steering.runs.measure import parameters
from steering.studies import find_study
from steering.task import find_task
from steering.typed import plain

NAMES = [one.name for one in packaged_configs()]
SAMPLES, PARAMETERS = 30_000, 10**7  # the largest: an MLP on digits; a text tower of 49,408 words


@pytest.fixture(scope="module")
def counted():
    """Parameters of a config's target, counted once."""
    found = {}

    def count(config):
        place = str([config.task.name, plain(config.target)])
        if place not in found:
            task = find_task(config.task.name)(config.task)
            found[place] = parameters(task.sketch(config.target).model)
        return found[place]

    return count


@pytest.mark.parametrize("name", NAMES)
def test_a_rehearsal_is_small(name, counted):
    config = load_config(name, ["smoke=true"])
    for study in [*config.studies, *(["compare"] if config.compare.methods else [])]:
        entry = find_study(study)
        asks = entry.make(options_of(entry, config)).wanted(config, [])
        for ask in with_parents_first(asks):
            where = f"{study}: {ask.label}, {ask.config.target.name}"
            assert ask.kind != "train" or ask.config.train.samples <= SAMPLES, where
            data = ask.config.task.data if ask.config.task.name == "classification" else None
            if data is None or data.path is None:  # else a file says how many classes there are
                assert counted(ask.config) <= PARAMETERS, where
