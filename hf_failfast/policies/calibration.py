"""What a drafter's confidence is worth, learned online."""

import math

# How firmly the start holds, in observations of a coin: the slope 1 and the intercepts 0, with which a confidence is
# taken as it is.
SLOPE_PRIOR, INTERCEPT_PRIOR = 8.0, 1.0
PLACES = 64
# Observations that are remembered: texts change.
MOST_INFORMATION = 40.0


class OnlineCalibration:
    """How likely the target confirms a draft token after confirmed ones: logistic regression on the log-odds of its
    confidence, one slope for all tokens and an intercept for each place in the draft.

    Learns from the first token on, with a Newton step per observation on the diagonal of the information matrix. The
    estimator is vLLM's (adaptive verification), without its learning rates.
    """

    def __init__(self) -> None:
        self.slope, self._slope_information = 1.0, SLOPE_PRIOR
        self.intercepts = [0.0] * PLACES
        self._information = [INTERCEPT_PRIOR] * PLACES

    def probability(self, place: int, confidence: float) -> float:
        """In (0, 1); 0 for a confidence that is not a positive number."""
        if not confidence > 0:
            return 0.0
        return _sigmoid(self.slope * _log_odds(confidence) + self.intercepts[min(place, PLACES - 1)])

    def observe(self, place: int, confidence: float, is_confirmed: bool) -> None:
        """Learns whether the target confirmed such a token."""
        if not confidence > 0:
            return
        place, odds = min(place, PLACES - 1), _log_odds(confidence)
        expected = self.probability(place, confidence)
        surprise, information = float(is_confirmed) - expected, expected * (1 - expected)
        self._slope_information = min(self._slope_information + information * odds * odds, 4 * MOST_INFORMATION)
        self._information[place] = min(self._information[place] + information, MOST_INFORMATION)
        self.slope = max(self.slope + surprise * odds / self._slope_information, 0.0)
        self.intercepts[place] += surprise / self._information[place]

    def fade(self, memory: float) -> None:
        """Takes confidences a little more as they are again: 1 keeps all that was learned, 0 nothing."""
        self.slope = 1 + memory * (self.slope - 1)
        self.intercepts = [memory * intercept for intercept in self.intercepts]
        self._slope_information = SLOPE_PRIOR + memory * (self._slope_information - SLOPE_PRIOR)
        self._information = [INTERCEPT_PRIOR + memory * (each - INTERCEPT_PRIOR) for each in self._information]


def _log_odds(probability: float) -> float:
    bounded = min(max(probability, 1e-4), 1 - 1e-4)
    return math.log(bounded / (1 - bounded))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))
