"""The trainings of the examples: a killed run goes on, and shards share the work."""

import argparse

import experiments
import numpy as np
import pytest
from experiments import WHOLE, Shard, run

VARIANTS = ("stock", "mirror, constraint", "dihedral")
SEEDS = range(3)
ALL = [(variant, seed) for seed in SEEDS for variant in VARIANTS]


def error_of(variant, seed, epochs):
    """Returns a number that tells each training from the others."""
    return len(variant) / 100 + seed / 10 + epochs / 1000


class Training:
    """Trainings that note which ones they are, and that stop the process at one of them."""

    def __init__(self, stops_at=None):
        self.done, self._stops_at = [], stops_at

    def __call__(self, variant, seed, epochs):
        if (variant, seed) == self._stops_at:
            raise KeyboardInterrupt
        self.done.append((variant, seed))
        return {"error": error_of(variant, seed, epochs), "free_weights": 10 + seed, "seconds": 0.5}


def expected(epochs=2):
    """Returns all rows."""
    return [
        {
            "variant": variant,
            "seed": seed,
            "epochs": epochs,
            "error": error_of(variant, seed, epochs),
            "free_weights": 10 + seed,
            "seconds": 0.5,
        }
        for variant, seed in ALL
    ]


def test_a_killed_run_goes_on_with_what_is_missing(tmp_path):
    file = tmp_path / "results.csv"
    with pytest.raises(KeyboardInterrupt):
        run(file, VARIANTS, SEEDS, 2, Training(stops_at=ALL[5]))
    rest = Training()

    rows = run(file, VARIANTS, SEEDS, 2, rest)

    assert rest.done == ALL[5:]
    assert rows == expected()
    assert experiments.read(file) == rows


def test_results_of_other_numbers_of_epochs_stay(tmp_path):
    file = tmp_path / "results.csv"
    run(file, VARIANTS, SEEDS, 2, Training())

    assert run(file, VARIANTS, SEEDS, 3, Training()) == expected(3)
    assert run(file, VARIANTS, SEEDS, 2, Training(stops_at=ALL[0])) == expected()


@pytest.mark.parametrize("count", [1, 2, 4, 20])
def test_shards_share_all_trainings(tmp_path, count):
    trainings = [Training() for _ in range(count)]
    for number, training in enumerate(trainings, start=1):
        folder = tmp_path / str(number)  # a machine of its own
        folder.mkdir()
        run(folder / "results.csv", VARIANTS, SEEDS, 2, training, Shard(number, count))
    for file in tmp_path.glob("*/*.csv"):
        file.rename(tmp_path / file.name)

    rows = run(tmp_path / "results.csv", VARIANTS, SEEDS, 2, Training(stops_at=ALL[0]))

    assert sorted(done for training in trainings for done in training.done) == sorted(ALL)
    assert rows == experiments.read(tmp_path / "results.csv") == expected()


def test_a_killed_shard_goes_on_as_a_shard(tmp_path):
    file, shard = tmp_path / "results.csv", Shard(2, 2)
    with pytest.raises(KeyboardInterrupt):
        run(file, VARIANTS, SEEDS, 2, Training(stops_at=ALL[5]), shard)
    rest = Training()

    run(file, VARIANTS, SEEDS, 2, rest, shard)

    assert rest.done == ALL[5::2]


def test_a_shard_is_read_from_its_notation():
    assert Shard.parse("2/4") == Shard(2, 4)
    assert Shard.parse("1/1") == WHOLE


@pytest.mark.parametrize("text", ["0/4", "5/4", "2", "2/", "-1/4", "a/b", "1/0", ""])
def test_other_text_is_no_shard(text):
    with pytest.raises(argparse.ArgumentTypeError, match="a shard is i/n, with i from 1 to n"):
        Shard.parse(text)


def test_a_summary_has_mean_and_standard_error_of_the_seeds(tmp_path):
    rows = run(tmp_path / "results.csv", VARIANTS, SEEDS, 2, Training())

    summed = {each["variant"]: each for each in experiments.summary(rows)}

    errors = [error_of("dihedral", seed, 2) for seed in SEEDS]
    assert list(summed) == list(VARIANTS)
    np.testing.assert_allclose(summed["dihedral"]["error"], np.mean(errors))
    np.testing.assert_allclose(summed["dihedral"]["standard_error"], np.std(errors, ddof=1) / 3**0.5)
    assert summed["dihedral"]["seeds"] == 3
