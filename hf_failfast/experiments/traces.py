"""What experiments share that look into the rounds."""

from ..measure.tracing import Trace, trace
from .base import Setup

# Of the stored runs: as the authors draft, the bundled drafter's whole canvas per pass, extended while it is sure.
STORED = "--max-new-tokens 96 --chunk-length 8 --max-draft-length 64 --confidence-threshold 0.45"


def traces(setup: Setup) -> list[Trace]:
    """One traced FailFast answer per prompt."""
    found = []
    for done, prompt in enumerate(setup.prompts, 1):
        found.append(
            trace(
                setup.target,
                prompt.ids,
                setup.drafter,
                attention_mask=prompt.attention_mask,
                max_length=prompt.max_length,
                failfast_config=setup.config,
                **prompt.generation_kwargs,
            )
        )
        setup.on_progress(done / len(setup.prompts))
    return found
