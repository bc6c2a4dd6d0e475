"""Where an answer ends, by stop strings and end-of-sequence ids."""

import torch
from transformers import StoppingCriteria

from hf_failfast.measure.exact_stops import ExactStops


class EndsWith(StoppingCriteria):
    """A criterion that looks at the last id only, as lm-eval's looks at the last few tokens."""

    def __init__(self, token_id: int) -> None:
        self.token_id = token_id

    def __call__(self, input_ids: torch.Tensor, scores: object, **_: object) -> torch.Tensor:
        return input_ids[:, -1] == self.token_id


def test_every_prefix_is_asked_about() -> None:
    """A stop inside several new tokens is found, and what follows it is cut."""
    stops = ExactStops(lambda prompt_length: EndsWith(7), [2], prompt_length=2, num_rows=2)
    assert stops(torch.tensor([[7, 1, 5, 7, 6], [1, 7, 5, 5, 5]])).tolist() == [True, False]
    assert stops.cut(torch.tensor([[7, 1, 5, 7, 6, 6], [1, 7, 5, 5, 5, 2]])) == [[5, 7], [5, 5, 5, 2]]


def test_without_stop_strings_an_answer_ends_with_its_end_of_sequence_id() -> None:
    """A batch's padding after an end-of-sequence id is cut, though generation never asked."""
    stops = ExactStops(None, [2], prompt_length=1, num_rows=2)
    assert stops.cut(torch.tensor([[2, 5, 2, 0, 0], [1, 5, 5, 5, 5]])) == [[5, 2], [5, 5, 5, 5]]
