"""What requests cost and how fast workers are: learned from replies, robust against noise.

Units are seconds.  The predicted service time of task k on worker w is

    s(k, w) = c_k * ((1 - f_k) + f_k / (v_w * A_w ** cpu_weight))

with ``c_k`` the seconds the task takes on a worker of speed 1, ``f_k`` its CPU share (0 for a task
that sleeps, 1 for one that computes), ``v_w`` the worker's speed and ``A_w`` the share of its cores
that is left for it.  Only the CPU-bound part of a task is stretched by a slow or contended worker.

Step sizes follow the variance: a task whose times vary wildly (``variance`` large) hardly moves the
estimate of a worker's speed, or workers would be blamed for the large requests that they drew.
"""

from __future__ import annotations

import math
from typing import Final

#: step of the log-variance and log-cost averages
LEARN_RATE: Final = 0.1
#: step of a worker's log-speed
SPEED_RATE: Final = 0.15
#: step of the mean cost, and its floor for tasks of high variance
COST_RATE: Final = 0.2
COST_RATE_MIN: Final = 0.02
#: one sample may move an estimate by at most this factor (in logs, e**2.5 = 12)
SURPRISE_MAX: Final = 2.5
#: speeds are kept between a twentieth and twenty times the declared one
LOG_SPEED_BOUND: Final = math.log(20.0)
#: shorter service times say more about scheduling than about the worker
SPEED_SAMPLE_S: Final = 0.001
#: from so many samples on a task's cost is known
COST_KNOWN: Final = 10
#: so many surprises in a row of the same sign, and so many standard errors of their mean, say that
#: a task takes longer or shorter than it did; less than this in logs does not matter
SHIFT_ROW: Final = 4
SHIFT_ERRORS: Final = 3.0
SHIFT_MIN: Final = 0.1
#: how far the learned speeds of equal workers spread, per standard deviation of a task's log-times
NOISE_PER_DEVIATION: Final = 0.5
NOISE_MAX: Final = 0.25
#: a clock cannot tell less than this from nothing
SERVICE_MIN_S: Final = 1e-7


class TaskCost:
    """The learned cost of one task.

    Until the first success the declared cost stands: ``cost`` seconds, or ``weight`` (the weight of
    a task is what it is expected to take, in seconds, where nothing better is known).
    """

    __slots__ = (
        "_calm",
        "_row",
        "_row_sign",
        "_row_sum",
        "count",
        "cpu_share",
        "declared_s",
        "log_cost",
        "mean_s",
        "noise",
        "variance",
    )

    def __init__(self, declared_s: float) -> None:
        self.declared_s = declared_s
        #: mean seconds on a worker of speed 1 (``c_k``)
        self.mean_s = max(declared_s, SERVICE_MIN_S)
        #: mean of the logarithm: what samples are compared with, as it ignores a heavy tail
        self.log_cost = math.log(self.mean_s)
        #: mean squared surprise of a sample, in logs (``q_k``)
        self.variance = 0.0
        #: surprises of the same sign that followed each other: the sign, how many, and the sum of
        #: the logarithms of these samples; and the variance and ``mean_s / exp(log_cost)`` before
        self._row_sign = 0.0
        self._row = 0
        self._row_sum = 0.0
        self._calm = 0.0, 1.0
        #: learned speeds that differ by less than this part may well be equal
        self.noise = 0.0
        #: CPU time / wall time where nothing else wants the core (``f_k``)
        self.cpu_share = 1.0
        #: successes seen
        self.count = 0

    @property
    def uncertainty(self) -> float:
        """Half the spread of its times, in logarithms; much as long as it was never seen."""
        return self.noise if self.count else NOISE_MAX

    def guess(self, other: TaskCost, factor: float) -> None:
        """Take it for ``factor`` times another one until there is a sample."""
        self.mean_s = max(other.mean_s * factor, SERVICE_MIN_S)
        self.log_cost = math.log(self.mean_s)
        self.cpu_share = other.cpu_share

    def service_s(self, speed: float) -> float:
        """Expected seconds on a worker of effective speed ``speed`` (``v_w * A_w **
        cpu_weight``)."""
        share = self.cpu_share
        return self.mean_s * (1.0 - share + share / speed)

    def tells_speed(self, service_s: float) -> bool:
        """Whether a sample that took so long says anything of its worker's speed."""
        return self.cpu_share > 0.5 and service_s >= SPEED_SAMPLE_S

    def learn(
        self,
        service_s: float,
        count: int,
        speed: float,
        availability: float,
        cpu_share: float,
        speed_rate: float = SPEED_RATE,
    ) -> float:
        """Learn from ``count`` successes with a mean of ``service_s`` on one worker.

        ``cpu_share`` is what the worker measured, negative when it did not.  Returns by how much
        (in logs) the worker's speed should move, at a step of ``speed_rate``: zero for samples that
        say nothing about it.
        """
        service_s = max(service_s, SERVICE_MIN_S)
        if cpu_share >= 0.0:
            # what it would have been with the core to itself; one sample of a mixture says little
            uncontended = min(1.0, cpu_share / max(availability, 0.1))
            step = 1.0 if self.count == 0 else LEARN_RATE
            self.cpu_share += step * (uncontended - self.cpu_share)
        share = self.cpu_share
        sample_s = service_s / (1.0 - share + share / (speed * availability))
        sample_s = max(sample_s, SERVICE_MIN_S)
        if self.count == 0:
            self.mean_s = sample_s
            self.log_cost = math.log(sample_s)
            self.count = count
            return 0.0
        log_cost = self.log_cost
        surprise = math.log(sample_s) - log_cost
        surprise = min(SURPRISE_MAX, max(-SURPRISE_MAX, surprise))
        trust = 1.0 / (1.0 + 10.0 * self.variance)
        rate = LEARN_RATE if count == 1 else 1.0 - (1.0 - LEARN_RATE) ** count
        shift = speed_rate * trust * surprise if self.tells_speed(service_s) else 0.0
        # what is put down to the worker is no property of the task
        own = surprise - shift
        self.variance += rate * (own * own - self.variance)
        self.noise = min(NOISE_MAX, NOISE_PER_DEVIATION * math.sqrt(self.variance))
        self.log_cost += rate * trust * own
        if self.count >= COST_KNOWN:
            sample_s *= math.exp(-shift)
        cost_rate = max(COST_RATE_MIN, COST_RATE * trust)
        if self.count < 1.0 / cost_rate:
            cost_rate = 1.0 / (self.count + 1)
        elif count > 1:
            cost_rate = 1.0 - (1.0 - cost_rate) ** count
        # at a rate of 1 the difference of very unequal numbers may round to nothing
        self.mean_s = max(SERVICE_MIN_S, self.mean_s + cost_rate * (sample_s - self.mean_s))
        self.count += count
        self._look_for_shift(own, log_cost + own)
        return -shift

    def _look_for_shift(self, surprise: float, log_sample: float) -> None:
        """Follow at once when it takes longer or shorter than it did: an average would take long,
        and take the change for noise."""
        if self._row_sign * surprise <= 0.0:
            self._row, self._row_sum, self._row_sign = 0, 0.0, math.copysign(1.0, surprise)
            self._calm = self.variance, self.mean_s / math.exp(self.log_cost)
        self._row += 1
        self._row_sum += log_sample
        if self._row < SHIFT_ROW:
            return
        level = self._row_sum / self._row
        shift = abs(level - self.log_cost)
        if shift > max(SHIFT_MIN, SHIFT_ERRORS * math.sqrt(self.variance / self._row)):
            self.variance, skew = self._calm
            self.log_cost, self.mean_s = level, max(SERVICE_MIN_S, math.exp(level) * skew)
            self._row_sign = 0.0
