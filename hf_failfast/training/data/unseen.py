"""Prompts that training never sees, and the target's answers to them: what a drafter's decoding is measured on."""

import dataclasses
import hashlib
import json
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..atomic_files import write_json
from ..config import DataConfig
from .answers import TURN, Writer
from .loops import without_loops
from .prompts import read_records
from .shards import Example, load_shard, save_shard

ANSWER_TOKENS = 96
RECORD, SHARD = "unseen.json", "unseen.safetensors"
BUILT_IN = "the package's own"

# In no template and by no model: the figure says something of prompts unlike those that training makes.
PROMPTS = (
    "Hi there! What can you do for me?",
    "Why is the sky blue during the day but red at sunset?",
    "What are the main causes of inflation?",
    "How do vaccines train the immune system?",
    "Explain the offside rule in football to somebody who never watched a match.",
    "Who wrote Don Quixote, and what is it about?",
    "What is the tallest mountain in South America?",
    "How does a microwave oven heat food?",
    "What is the difference between weather and climate?",
    "When did the Berlin Wall fall and why does it matter?",
    "Tell me three facts about octopuses.",
    "Why do cats purr?",
    "How long should I boil an egg if I want the yolk to stay soft?",
    "My laptop gets hot and slow after an hour. What can I try?",
    "I have a job interview tomorrow and I am nervous. Any advice?",
    "How can I remember the names of people I have just met?",
    "Should I rent or buy a flat if I will move again in three years?",
    "What is a polite way to decline a wedding invitation?",
    "Plan a weekend in Rome for two people who love food.",
    "Suggest a strength workout without equipment for twenty minutes.",
    "Write a Python function that returns the second largest element of a list.",
    "Write a Python function that flattens a nested dictionary, joining the keys with dots.",
    "How do I read a JSON file in Python and print one of its fields?",
    "Write a bash one-liner that counts the lines of all text files in a folder.",
    "Write an SQL query that lists customers without any order.",
    "Implement a stack in Java with push, pop and peek.",
    "What is wrong with this code?\n\nfor i in range(10)\n    print(i)",
    "Explain what this does: `sorted(words, key=lambda w: (-len(w), w))`",
    "Write a regular expression that matches a date such as 2024-05-31.",
    "Give me a minimal HTML page with a heading and a button.",
    "What is the time complexity of binary search, and why?",
    "Write a unit test in pytest for a function that adds two numbers.",
    "A train leaves at 9:40 and arrives at 13:05. How long is the journey?",
    "If 3 pens cost 4.50, what do 7 pens cost?",
    "What is 17 times 24? Show the steps.",
    "A recipe for 4 people needs 300 g of rice. How much rice do 10 people need?",
    "Simplify the fraction 84/126.",
    "A rectangle is 8 cm long and its area is 40 square cm. What is its perimeter?",
    "Sara is twice as old as Tim. In 5 years the sum of their ages will be 40. How old is Tim?",
    "How many seconds are there in a week?",
    "Rewrite this politely: Send me the report today or we have a problem.",
    "Make this sentence active: The window was broken by the children.",
    "Translate into Spanish: Where is the nearest train station?",
    "Fix the spelling: I recieved you're mesage yesterday and definately will anser.",
    "Summarise in one sentence: The city council voted on Tuesday to close the old bridge for repairs. Traffic will "
    "be led over the northern bypass for at least eight months, and shop owners fear for their business.",
    "Turn this into bullet points: We need milk, two loaves of bread, cheese, and batteries for the clock.",
    "Shorten to ten words: Due to the very bad weather conditions that we had all week, the match was cancelled.",
    "Give this paragraph a title: Bees visit thousands of flowers a day. Without them many fruits would not grow.",
    "Extract the email addresses: Contact anna@example.org or, after five, the desk at help@example.com.",
    "Return as JSON with the fields city and temperature: It is 21 degrees in Lisbon today.",
    "Is this review positive or negative? The room was clean, but nobody answered the phone for two days.",
    "Text: The library opens at ten and closes at six, except on Fridays, when it stays open until nine.\n\n"
    "Question: When does the library close on Friday?",
    "List all months that have exactly 30 days.",
    "Name five vegetables that grow underground.",
    "List the planets of the solar system with one property each.",
    "Give me ten ideas for a school science project.",
    "Write a haiku about the first snow.",
    "Write the opening of a detective story set on a ship.",
    "Write a short email asking my landlord to repair the heating.",
    "Write a birthday wish for a colleague who loves gardening.",
    "Describe a thunderstorm to somebody who cannot hear.",
    f"What is a noun?{TURN}A noun is a word for a person, a place or a thing.{TURN}And a verb? Give two examples.",
    f"I want to learn the guitar.{TURN}Great! Do you own one already?{TURN}No. What should a beginner buy?",
    f"What is the capital of Canada?{TURN}The capital of Canada is Ottawa.{TURN}How many people live there?",
)

# The same for a target that continues text and answers nobody.
BEGINNINGS = (
    "The history of the bicycle begins in the early nineteenth century, when",
    "The human heart is a muscular organ that",
    "Volcanoes form where",
    "Photosynthesis is the process by which plants",
    "The Roman Empire reached its greatest extent under",
    "Coffee was first grown in",
    "The Amazon rainforest covers an area of",
    "A black hole is a region of space in which",
    "Glass is made by heating sand until",
    "The first railway line for passengers was opened in",
    "Whales are mammals, although",
    "The Great Wall of China was built to",
    "Inflation is measured by",
    "Bread rises because",
    "The violin has four strings, which are tuned to",
    "Most deserts lie between",
    "LISBON - The city's tram drivers said on Monday that they would",
    "Scientists at the university have found that",
    "The match was decided in the last minute, when",
    "Shares of the company fell by four percent after",
    "After three days of rain the river",
    "The museum will open its new wing in spring. Visitors can expect",
    "A new law requires shops to",
    "The mayor thanked the volunteers who",
    "The old lighthouse keeper had not seen a ship for weeks. That evening,",
    "When Mira opened the letter, she understood at once that",
    "It was the last day of summer, and the children",
    "The robot looked at its hands and asked,",
    "Nobody in the village talked about the house on the hill, because",
    "The train stopped between two stations, and the lights went out. Then",
    "My grandmother used to say that",
    "On his first day as captain, Jonas",
    "def is_leap_year(year):\n    ",
    'def count_words(text):\n    """Returns a dictionary from each word to how often it occurs."""\n',
    "class Queue:\n    def __init__(self):\n        self.items = []\n\n    def",
    "# Read a CSV file and print the mean of each column\nimport csv\n",
    "function sum(numbers) {\n",
    "SELECT name, price\nFROM products\nWHERE",
    "<!DOCTYPE html>\n<html>\n<head>\n<title>My garden</title>\n",
    "for i in range(1, 101):\n    if i % 15 == 0:\n",
    "#include <stdio.h>\n\nint main(void) {\n",
    'try:\n    with open("settings.json") as file:\n',
    "Q: Why is the sky blue?\nA:",
    "Question: What is the capital of Canada?\nAnswer:",
    "Q: How many seconds are there in a week?\nA:",
    "Interviewer: How did you become a pilot?\nPilot:",
    "Customer: My order has not arrived yet.\nAgent:",
    "Teacher: Who can tell me what a verb is?\nStudent:",
    "1 + 1 = 2\n2 + 2 = 4\n4 + 4 = 8\n8 + 8 =",
    "If 3 pens cost 6 euros, then 7 pens cost",
    "The months of the year are January, February,",
    "Ingredients for pancakes:\n- 2 eggs\n-",
    "Things to pack for a week at the sea:\n1.",
    "Five vegetables that grow underground are",
    "How to plant a tree\n\nStep 1:",
    "To change the tyre of a bicycle, first",
    "Preheat the oven to 180 degrees. In a large bowl, mix",
    "Dear Ms. Alvarez,\n\nI am writing to apply for",
    "Hi Tom,\n\nThanks for your message. Unfortunately,",
    "Subject: Heating in flat 12\n\nDear landlord,\n\n",
    "Name: Anna Berg\nAge: 34\nCity:",
    "| Country | Capital |\n| --- | --- |\n| France | Paris |\n|",
    "English: Good morning. French: Bonjour. English: Thank you. French:",
    "Abstract: We study the effect of sleep on memory in",
)


def unseen_prompts(writer: Writer) -> list[str]:
    """Those of the file that `unseen` names, by default PROMPTS, or BEGINNINGS where the target has no chat template.
    Raises ValueError where none can be used."""
    name = writer.config.unseen
    config = dataclasses.replace(writer.config, records="prompts", source=None, prompts=name)
    own = PROMPTS if writer.has_template else BEGINNINGS
    texts = own if name is None else read_records(config)
    usable = [text for text in texts if text.strip() and not writer.is_too_long(text)]
    if not usable:
        raise ValueError(f"`unseen` must hold a usable prompt, but {name or BUILT_IN} have none.")
    return usable


def unseen_examples(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: DataConfig, folder: Path, name: str
) -> list[Example]:
    """The greedy answers to them of the target called `name`, of at most ANSWER_TOKENS tokens and cut where they loop.

    They are kept in `folder`, and written anew where the prompts or the target are others.
    """
    writer = Writer(target, tokenizer, dataclasses.replace(config, records="prompts", store_states=False))
    prompts = unseen_prompts(writer)
    digest = hashlib.sha256("\0".join(map(writer.prompt, prompts)).encode()).hexdigest()
    record = {"target": name, "prompts": digest, "answer_tokens": ANSWER_TOKENS}
    path = folder / RECORD
    if not path.exists() or json.loads(path.read_text()) != record:
        save_shard(folder / SHARD, writer.greedy_answers(prompts, ANSWER_TOKENS))
        write_json(path, record)
    return without_loops(list(load_shard(folder / SHARD)))
