from __future__ import annotations

import random
from itertools import product

import numpy as np
import torch

from tser_cli.data.transforms import Stream, image_seed, isolated, permutation, table


def test_permutation_is_a_function_of_seed_and_epoch() -> None:
    orders = {
        (seed, epoch): tuple(permutation(seed, epoch, 30).tolist())
        for seed, epoch in product(range(4), repeat=2)
    }
    assert all(sorted(order) == list(range(30)) for order in orders.values())
    assert len(set(orders.values())) == 16
    assert orders[2, 3] == tuple(permutation(2, 3, 30).tolist())


def test_seeds_differ_between_images_epochs_seeds_and_streams() -> None:
    streams = (Stream.RESIZE, Stream.AUTOAUGMENT)
    seeds = {image_seed(*key) for key in product(streams, range(5), range(5), range(20))}
    assert len(seeds) == 2 * 5 * 5 * 20
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert image_seed(Stream.RESIZE, 2**32 - 1, 10**9, 10**9) >= 0


def test_table_draws_every_value_about_equally_often() -> None:
    draws = table(Stream.CROP, 0, 0, 9000, (3, 2))
    assert draws.shape == (9000, 2)
    for column, bound in enumerate((3, 2)):
        counts = torch.bincount(draws[:, column])
        assert len(counts) == bound
        # within five standard deviations of a binomial
        assert (counts - 9000 / bound).abs().max() < 5 * (9000 * 0.25) ** 0.5
    assert not torch.equal(draws, table(Stream.CROP, 0, 1, 9000, (3, 2)))
    assert not torch.equal(draws, table(Stream.CROP, 1, 0, 9000, (3, 2)))
    assert not torch.equal(draws, table(Stream.CUTOUT, 0, 0, 9000, (3, 2)))


def test_a_table_is_the_same_wherever_it_lies() -> None:
    # as drawn before there were devices: no image may change its look
    assert table(Stream.CROP, 3, 5, 4, (9, 9)).tolist() == [[8, 6], [4, 7], [5, 2], [8, 0]]
    there = table(Stream.CROP, 3, 5, 4, (9, 9), torch.device("meta"))
    assert there.device.type == "meta" and there.shape == (4, 2)


def test_isolated_puts_the_generator_and_the_threads_back() -> None:
    torch_state, threads = torch.get_rng_state(), torch.get_num_threads()
    others = random.getstate(), repr(np.random.get_state())
    with isolated():
        assert torch.get_num_threads() == 1
        torch.default_generator.manual_seed(5)
        torch.rand(3)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.get_num_threads() == threads
    assert others == (random.getstate(), repr(np.random.get_state()))
