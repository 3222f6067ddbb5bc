"""A short training on a sample of train, with which a method prepares for the real training."""

from __future__ import annotations

import random
from dataclasses import dataclass

from peftlab.engine import fast
from peftlab.layers import PreTrainedModel
from peftlab.training.batches import Batch, Encoded, cut, split_by_limit, stratified_sample
from peftlab.training.loop import Loop
from peftlab.training.passes import Trainee, TrainingPlan, n_parts


@dataclass
class Rehearsal:
    """A short training on a sample, before the real one; see `peftlab.methods.base.Rehearsal`."""

    method: Trainee
    train: Encoded
    plan: TrainingPlan

    def sample(self, share: float, least: int) -> list[Batch]:
        """Batches of a `share` of train, stratified by label; of at least `least` examples."""
        size = min(len(self.train), max(least, round(share * len(self.train))))
        indices = stratified_sample(self.train.labels, size, self.plan.seed)
        indices.sort(key=self.train.lengths.__getitem__)
        return [
            self.train.batch(part, self.plan.device)
            for part in cut(indices, split_by_limit(size, self.plan.settings.batch_size))
        ]

    def fit(self, model: PreTrainedModel, batches: list[Batch], steps: int) -> None:
        """Train `model` for `steps` updates on `batches`, which each epoch reorders."""
        loop = Loop(model, self.method, self.train, self.plan, steps)
        rng = random.Random(f"{self.plan.seed}/rehearsal")
        model.train()
        with fast(model, self.plan.settings.fast):
            for index in range(steps):
                if index % len(batches) == 0:
                    rng.shuffle(batches)
                batch = batches[index % len(batches)]
                size, n_tokens = len(batch.labels), batch.n_tokens(self.plan.packed)
                loop.step(batch.split(n_parts(size, n_tokens, self.plan)), size, size)
        loop.optimizer.zero_grad()
