"""Rounds: the phases of a method once more, with fresh parties.

A round is a function of its number, and it belongs to one process (:meth:`Runtime.alone`). Its running state
is the loop's, in a folder of its own: a run that was stopped goes on within a round.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

from kdcli.artifacts.store import Output, remove
from kdcli.words import Method


def fresh_parties(method: Method, networks: Mapping[str, nn.Module], seed: int) -> dict[str, nn.Module]:
    """The parties of a round: the networks, the same in every round, and what the method builds anew.

    Args:
        method: what it builds reads no shapes.
        networks: the parties that have a source, by name.
        seed: of everything random in what is built.
    """
    parties = dict(networks)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for party in method.parties:
            if party.build is not None:
                torch.default_generator.manual_seed(seed)
                parties[party.name] = party.build()
    return parties


@contextmanager
def kept(output: Output, number: int) -> Iterator[Output]:
    """Where a round keeps its running state and its log; once the block has ended, nothing is left of it."""
    folder = output.partial / f"round-{number:09d}"
    folder.mkdir(exist_ok=True)
    yield Output(output.path, folder, replace=False)
    remove(folder)
