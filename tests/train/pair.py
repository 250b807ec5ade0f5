"""Two processes that wait for work and do it together, for tests of what `torchrun` would start."""

import multiprocessing
import os
import signal
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from backdrift.errors import UserError
from backdrift.train.loop import train
from backdrift.train.training import Training

# once for all processes of a test run; what torch otherwise imports when it is first used costs seconds in each
LOADED = ["torch._dynamo", "torch.distributed.fsdp", "torch.distributed.checkpoint", "backdrift.train.loop"]


class Crash(Exception):
    pass


class Small(nn.Module):
    """A linear network that sees noise and label, with dropout if wanted; `dies_at`: process 1 does, in that call."""

    def __init__(self, dropout=0.0, dies_at=None, seed=1):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.enter, self.label, self.leave = nn.Linear(17, 32), nn.Embedding(4, 32), nn.Linear(32, 16)
        self.drop, self.dies_at, self.calls = nn.Dropout(dropout), dies_at, 0

    def forward(self, x, noise, cond=None):
        self.calls += 1
        if self.calls == self.dies_at and dist.is_initialized() and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        h = self.enter(torch.cat([x.flatten(1), noise[:, None]], 1)) + self.label(cond["label"])
        return self.leave(self.drop(h.tanh())).view(x.shape)


def run(pictures, options, folder, *, net=None, shard=False, crash_at=None):
    """Train, up to a crash of all processes after step `crash_at`; returns all weights and the notices."""
    whole = Training.advance

    def advance(training):
        if training.step == crash_at:
            raise Crash
        return whole(training)

    made = None if net is None else Small(**net)
    with mock.patch.object(Training, "advance", advance):
        try:
            trained = train(pictures, options, run=folder, net=made, shard=shard)
        except Crash:
            return None
    return torch.cat([p.detach().double().flatten() for p in trained.network.parameters()]), trained.notices


class Pair:
    """pair(job, *words, **options) runs job in both processes; the two results, errors as sentences."""

    def __init__(self, folder: Path):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(LOADED)
        store = f"file://{folder}/store"
        self.pipes, self.processes = [], []
        for rank in range(2):
            mine, theirs = context.Pipe()
            self.processes.append(context.Process(target=_work, args=(rank, store, theirs), daemon=True))
            self.processes[-1].start()
            theirs.close()
            self.pipes.append(mine)

    def __call__(self, job, *words, **options):
        for pipe in self.pipes:
            pipe.send((job, words, options))
        return [self.answer(rank) for rank in range(2)]

    def answer(self, rank):
        """What this process says; None if it is dead."""
        assert self.pipes[rank].poll(100), "no answer"
        try:
            return self.pipes[rank].recv()
        except EOFError:
            return None

    def close(self):
        for process in self.processes:
            process.kill()
            process.join()


def _work(rank, store, pipe):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    while True:
        job, words, options = pipe.recv()
        try:
            pipe.send(job(*words, **options))
        except UserError as error:
            pipe.send(f"{type(error).__name__}: {error}")
