"""A short training on a sample of train, before the real one, for a method that prepares itself."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from peftlab.engine import fast
from peftlab.training.batches import Batch, Encoded, cut, spread, stratified
from peftlab.training.guard import check_loss
from peftlab.training.loop import Plan, Trainee, batch_loss, begin_stream, n_parts, step_seed
from peftlab.training.schedule import warmup_and_decay

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Rehearsal:
    """A short training on a sample, before the real one; see `peftlab.methods.hooks.Rehearsal`."""

    method: Trainee
    train: Encoded
    plan: Plan

    def sample(self, share: float, least: int) -> list[Batch]:
        """Batches of a share of train, stratified by label, at least `least` examples."""
        size = min(len(self.train), max(least, round(share * len(self.train))))
        indices = stratified(self.train.labels, size, self.plan.seed)
        lengths = self.train.lengths
        indices.sort(key=lengths.__getitem__)
        return [
            self.train.batch(part, self.plan.device)
            for part in cut(indices, spread(size, self.plan.batch_size))
        ]

    def fit(self, model: PreTrainedModel, batches: list[Batch], steps: int) -> None:
        """Train `model` for `steps` updates on `batches`, each epoch in an order of its own."""
        plan = self.plan
        groups = self.method.parameter_groups(model, plan.lr, plan.head_lr, plan.weight_decay)
        trained = [parameter for group in groups for parameter in group["params"]]
        optimizer = self.method.make_optimizer(groups)
        schedule = warmup_and_decay(optimizer, math.ceil(plan.warmup * steps), steps)
        order = random.Random(f"{plan.seed}/rehearsal")
        model.train()
        with fast(model, plan.fast):
            for index in range(steps):
                begin_stream(step_seed(plan.seed, index), plan.device)
                if index % len(batches) == 0:
                    order.shuffle(batches)
                batch = batches[index % len(batches)]
                size, width = batch.inputs["input_ids"].shape
                count = n_parts(size, width, plan.accumulation, plan.by_tokens)
                for part in batch.split(count):
                    loss = batch_loss(model, part, plan) * (len(part.labels) / size)
                    check_loss(loss.item(), index + 1, [], plan.lr, model)
                    loss.backward()
                nn.utils.clip_grad_norm_(trained, plan.clip)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
