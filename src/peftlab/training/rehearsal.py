"""A short training on a sample of train, by which a method prepares itself before the real one."""

from __future__ import annotations

import random
from dataclasses import dataclass

from peftlab.engine import fast
from peftlab.layers import PreTrainedModel
from peftlab.training.batches import Batch, Encoded, cut, spread, stratified
from peftlab.training.loop import Loop
from peftlab.training.passes import Plan, Trainee, n_parts


@dataclass
class Rehearsal:
    """A short training on a sample, before the real one; see `peftlab.methods.base.Rehearsal`."""

    method: Trainee
    train: Encoded
    plan: Plan

    def sample(self, share: float, least: int) -> list[Batch]:
        """Batches of a share of train, stratified by label, at least `least` examples."""
        size = min(len(self.train), max(least, round(share * len(self.train))))
        indices = stratified(self.train.labels, size, self.plan.seed)
        indices.sort(key=self.train.lengths.__getitem__)
        return [
            self.train.batch(part, self.plan.device)
            for part in cut(indices, spread(size, self.plan.settings.batch_size))
        ]

    def fit(self, model: PreTrainedModel, batches: list[Batch], steps: int) -> None:
        """Train `model` for `steps` updates on `batches`, each epoch in an order of its own."""
        loop = Loop(model, self.method, self.train, self.plan, steps)
        order = random.Random(f"{self.plan.seed}/rehearsal")
        model.train()
        with fast(model, self.plan.settings.fast):
            for index in range(steps):
                if index % len(batches) == 0:
                    order.shuffle(batches)
                batch = batches[index % len(batches)]
                n, n_tokens = len(batch.labels), batch.n_tokens(self.plan.packed)
                loop.step(batch.split(n_parts(n, n_tokens, self.plan)), n, n)
        loop.optimizer.zero_grad()
