"""Whether two vocabularies can come from one tokenizer."""

# Checkpoints pad one tokenizer's vocabulary to different sizes (151,936 and 152,064 for Qwen2.5).
MAX_VOCABULARY_PADDING = 512


def check_vocabulary(drafter_size: int, target_size: int) -> None:
    """Raises ValueError if the two sizes differ by more than padding."""
    padding = abs(drafter_size - target_size)
    if padding > min(MAX_VOCABULARY_PADDING, max(drafter_size, target_size) // 8):
        raise ValueError(
            f"The drafter's vocabulary has {drafter_size} entries and the target's {target_size}: they cannot come "
            "from the same tokenizer. Use a drafter made for the target's tokenizer, or pass both tokenizers "
            "(`tokenizer=`, `assistant_tokenizer=`)."
        )


def check_mask_token(mask_token_id: int, rows: int) -> None:
    """Raises ValueError if a drafter's mask token has no row in the target's embedding, which the drafter borrows."""
    if mask_token_id >= rows:
        raise ValueError(
            f"The drafter's `mask_token_id` is {mask_token_id}, but the target's embedding, which it borrows, has "
            f"{rows} rows."
        )
