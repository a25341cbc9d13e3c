# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The highest rate at which packets get through without loss, found by trying."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

LOSS = 0.001
"What is still called no loss."
LAG, LAG_S = 1.05, 0.01
"How much longer than sending receiving may take: beyond that a queue is filling, and would overflow later."
MARGINAL_LOSS = 0.02
"Less than this may have been a disturbance: the rate is tried a second time."
TRIAL_S, CONFIRM_S = 0.6, 1.5
STEP = 1.5
PRECISION = 1.07
BACK = 0.88
MOST_TRIALS, MOST_CONFIRMATIONS = 14, 12


@dataclass(frozen=True)
class Trial:
    """What was counted at one rate."""

    sent: int
    received: int
    sending_s: float
    receiving_s: float

    @property
    def loss(self) -> float:
        return 1 - self.received / self.sent if self.sent else 1.0

    @property
    def offered(self) -> float:
        """Packets a second that were sent, which can be less than asked for."""
        return self.sent / self.sending_s if self.sending_s else 0.0

    @property
    def delivered(self) -> float:
        """Packets a second that arrived, the emptying of queues after the last was sent included."""
        seconds = max(self.sending_s, self.receiving_s)
        return self.received / seconds if seconds else 0.0

    def falls_short_of(self, rate: float) -> bool:
        """Whether the generator did not reach a rate."""
        return self.offered < rate / PRECISION

    @property
    def clean(self) -> bool:
        return self.loss < LOSS and self.receiving_s <= self.sending_s * LAG + LAG_S


Attempt = Callable[[float, float], Trial]
"Send at a rate, for so many seconds."


def highest_clean_rate(attempt: Attempt, guess: float) -> float:
    """The most packets a second that arrive without loss, within 7 %; 0.0 if there is none.

    First short trials lead to about the right place, and may be lucky. Then longer ones have to confirm it,
    or each a little less.
    """
    rate = _approach(lambda rate: _fair_trial(attempt, rate), guess)
    for _ in range(MOST_CONFIRMATIONS):
        if rate < 1:
            break
        trial = attempt(rate, CONFIRM_S)
        if trial.clean:
            return trial.delivered
        rate *= BACK
    return 0.0


def _fair_trial(attempt: Attempt, rate: float) -> Trial:
    """One trial, or the second one if a disturbance may have spoilt the first."""
    trial = attempt(rate, TRIAL_S)
    spoilt = trial.falls_short_of(rate) if trial.clean else trial.loss < MARGINAL_LOSS
    return attempt(rate, TRIAL_S) if spoilt else trial


def _approach(attempt: Callable[[float], Trial], guess: float) -> float:
    """The highest rate that one trial found clean; 0.0 if there was none.

    From the guess in growing steps until the limit is between two rates, then between these. A generator that
    cannot reach a rate ends the search: then it is the limit.
    """
    clean_rate = failed_rate = 0.0
    rate, step = guess, STEP
    for _ in range(MOST_TRIALS):
        trial = attempt(rate)
        if trial.clean:
            clean_rate = rate
            if trial.falls_short_of(rate):
                break
        else:
            failed_rate = rate
        if not failed_rate:
            rate, step = clean_rate * step, step * STEP
        elif not clean_rate:
            rate, step = failed_rate / step, step * STEP
        elif failed_rate / clean_rate > PRECISION:
            rate = math.sqrt(clean_rate * failed_rate)
        else:
            break
    return clean_rate
