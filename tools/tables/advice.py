"""The signs that `SpecDecodingStats.advice` knows."""

from hf_failfast.decoding.advice import SIGNS

from . import markdown


def table() -> str:
    return markdown(("sign", "what to do"), [(sign.meaning, sign.remedy) for sign in SIGNS])
