"""A rationale layer whose answer is the sum of what each word says for each class.

Every token gets a logit for each class, of being evidence for it. The logits of the text are the
sums of their sigmoids, to some power, over its words, times a factor, plus what each class has to
begin with. Above a power of 1 few sure votes outweigh many doubtful ones, which in a long text add
up to more: then the answer rests on the words that the layer is most certain of.

Nothing else reaches the answer: a document is a bag of votes, as in multiple instance learning for
sentiment (Angelidis and Lapata, TACL 2018, without their attention). What people marked are such
votes, so they can be taught directly, and the answer is additive in what they count. It is not
additive in the words: a vote knows of those around it, as far as the states under it do, thirteen
words in our CNN and the whole window in a transformer, and what a method that masks words finds is
spread as far.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SILENT = -2.0  # logit of a fresh layer: hardly a word is evidence
WORTH = 0.2  # of a vote at first, in logits
NEVER = -8.0  # logit of a class that no word is evidence for yet, at a power of 1


class Evidence(nn.Module):
    """Sums votes.

    Args:
        classes: number of classes.
        power: of the chance that a word is evidence, at least 1.
    """

    def __init__(self, classes: int, power: float = 1.0) -> None:
        super().__init__()
        self.power = power
        self.log_worth = nn.Parameter(torch.tensor(math.log(WORTH)))
        self.prior = nn.Parameter(torch.zeros(classes))

    def forward(self, votes: Tensor, allowed: Tensor) -> Tensor:
        """Returns the logits of texts, float32 [batch, classes].

        Args:
            votes: logits of being evidence, [batch, tokens, classes].
            allowed: bool [batch, tokens], tokens that may vote.
        """
        counted = torch.mul(self.count(votes.float()), allowed[..., None].float())
        return torch.mul(counted.sum(1), self.log_worth.exp()) + self.prior

    def count(self, votes: Tensor) -> Tensor:
        """Returns what votes count, in [0, 1], of the shape of their logits."""
        if self.power == 1:
            return votes.sigmoid()
        # The sigmoid to this power. `pow` has no value just below 0, where rules that take slopes
        # of each function on its own (training.attribution.propagation) may look.
        return torch.exp(functional.softplus(-votes) * -self.power)

    def add_class(self) -> None:
        """Adds a class that has nothing to begin with."""
        self.prior = nn.Parameter(torch.cat([self.prior.detach(), torch.zeros(1)]))


def unheard(power: float) -> float:
    """Returns the logit of a vote that counts, whatever the power, what one of `NEVER` is.

    Hardly anything; but with a logit of `NEVER` itself there would be no gradient left above a
    power of 2.
    """
    chance = (1 / (1 + math.exp(-NEVER))) ** (1 / power)
    return math.log(chance / (1 - chance))


def silence(classifier: nn.Linear) -> None:
    """Makes a linear layer one of votes of which hardly any is cast; its weights stay."""
    nn.init.constant_(classifier.bias, SILENT)
