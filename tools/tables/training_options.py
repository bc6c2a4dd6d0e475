"""The options of `hf-failfast train` that decide the data and the training, as the settings themselves name them."""

from hf_failfast.training.config import DataConfig, TrainingConfig
from hf_failfast.training.options import Option, options_of

from . import markdown


def table() -> str:
    options = {each.name: each for kind in (TrainingConfig, DataConfig) for _, each in options_of(kind)}
    rows = [(f"`{each.flag}`", _default(each), each.help) for each in options.values()]
    return markdown(("option", "default", "what it is"), rows)


def _default(option: Option) -> str | None:
    if isinstance(option.default, bool):
        return "on" if option.default else "off"
    return option.shown or (None if option.default is None else str(option.default))
