"""Prompts as people write them: templates filled with common words, sentences and definitions.

Questions that a target writes itself are much alike. These cost nothing to make, and no two are the same.
"""

import random
import re
from collections.abc import Sequence

from ..config import DataConfig
from .answers import TURN
from .words import Words

NAMES = "Alice Ben Carla David Emma Farid Grace Hiro Ines John Kira Liam Maria Nadia Omar Paul Rosa Sam Tara Victor"
JOBS = "teacher doctor engineer student manager nurse chef writer designer parent farmer lawyer"
LANGUAGES = "French Spanish German Italian Portuguese Dutch"
MODULES = "math random json re os itertools datetime"
NUMBERS = {"few": (3, 10), "small": (2, 12), "number": (13, 90), "hundreds": (100, 999)}
LONGEST = 600  # characters

QUESTIONS = (
    "What is {noun}?",
    "What is a {noun}?",
    "What is the difference between a {noun} and a {noun}?",
    "Explain {noun} in simple terms.",
    "Explain to a child how {noun} works.",
    "Why is {noun} important?",
    "How can I improve my {noun}?",
    "How do I {verb} a {noun}?",
    "Give me {few} tips on how to {verb} a {noun}.",
    "What are the advantages and disadvantages of {noun}?",
    "Tell me about the history of the {noun}.",
    "I am a {job} and want to learn about {noun}. Where should I start?",
    "What should I do if my {noun} is {adjective}?",
    "Can you recommend a {adjective} {noun}?",
    "Is {noun} {adjective}?",
    'What does the word "{noun}" mean? Use it in a sentence.',
    "Describe a {adjective} {noun}.",
    "How does {noun} affect {noun}?",
    "My friend is worried about {noun}. What can I say?",
    'Which word is defined as "{definition}"?',
)
LISTS = (
    "List {few} kinds of {noun}.",
    "Name {few} things that are {adjective}.",
    "Give me a list of {few} {adjective} ideas for a {noun}.",
    "What are the main parts of a {noun}?",
    "Make a packing list for a trip to see a {noun}.",
    "Create a daily schedule for a {job}.",
    "Write the steps to {verb} a {noun}.",
    "Create a table of {few} kinds of {noun} with their {noun}.",
    'Give five synonyms of "{adjective}".',
    "Count from {small} to {number}.",
    "Write a shopping list for a {noun} dinner.",
)
CODE = (
    "Write a Python function that does the following: {does}.",
    "Write a Python function `{function}` with a docstring. It should do this: {does}.",
    'Complete this function:\n\ndef {function}(value):\n    """{does}."""\n',
    "What does the Python function {function} do? Give an example.",
    "Write a Python function that reads a file of {noun} records and returns the one with the largest {noun}.",
    "Write a Python function that counts each {noun} in a list.",
    "Write a function in Python which groups the items of a list by their {noun}, and explain it.",
    "How do I sort a list of {noun} objects by {noun} in Python?",
    "Write a JavaScript function that validates a {noun} entered by the user.",
    "Write a class in Python that stores a {noun} and its {noun}.",
    "Write a SQL query that finds the {few} most common values of {noun} in a table of {noun} rows.",
    "Write a short program that prints a {noun} {small} times.",
    "Convert a list of {noun} names to JSON in Python.",
    "Write a unit test for a function that computes the total {noun} of a {noun}.",
)
SUMS = (
    "{name} has {number} of them and buys {small} more {noun} cards. How many does {name} have now?",
    "A {noun} costs ${number}. How much do {small} of them cost?",
    "What is {number} * {number}?",
    "What is {number} + {number} - {small}?",
    "If {small} workers need {number} days, how long do {few} workers need? Explain step by step.",
    "{name} drives {number} miles in {small} hours. What is the average speed?",
    "There are {small} boxes with {number} pieces of {noun} in each. How many are there in total? Show your work.",
    "A shop sells {number} tickets on Monday and {number} on Tuesday. What is the total?",
    "Solve for x: {small}x + {number} = {hundreds}",
    "What is {number}% of {hundreds}?",
    "Convert {number} miles to kilometers.",
    "Convert {number} degrees Celsius to Fahrenheit.",
    "{name} reads {small} pages a day. How many days does a book of {hundreds} pages take?",
    "Is {hundreds} a prime number?",
    "Split ${hundreds} equally between {few} people.",
    "What is the next number: {small}, {number}, {hundreds}, ...?",
)
REWRITING = (
    "Rewrite the following sentence in a more formal way: {sentence}",
    "Translate to {language}: {sentence}",
    "Correct the grammar of this sentence: {sentence}",
    "Put this sentence into the past tense: {sentence}",
    "Paraphrase: {sentence}",
    "Repeat the following text exactly: {sentence} {sentence}",
    "Make this shorter: {sentence} {sentence} {sentence}",
    "Summarize the following text in one sentence: {sentence} {sentence} {sentence} {sentence}",
    "Turn these notes into a paragraph: {definition}; {definition}; {definition}.",
    "Write a headline for this text: {sentence} {sentence}",
)
EXTRACTION = (
    "Is the sentiment of this sentence positive or negative? {sentence}",
    "Extract the nouns from this sentence: {sentence}",
    "List the verbs of the following text: {sentence} {sentence}",
    "Answer the question about the text.\n\nText: {sentence} {sentence} {sentence}\n\nQuestion: What is it about?",
    "Text: {name} is a {job}. {sentence} {name} is {number} years old.\n\nQuestion: How old is {name}?",
    'Write this as JSON with the keys "name", "job" and "age": {name} is a {job} and {number} years old.',
    "Which of these sentences is about a {noun}?\n1. {sentence}\n2. {sentence}\n3. {sentence}",
)
WRITING = (
    "Write a short story about a {noun} and a {noun}.",
    "Write a poem about {noun}.",
    "Write an email to my boss about the {noun}.",
    "Write a letter to {name} about {noun}.",
    "Write a paragraph about {noun}.",
    "Write a product description for a {adjective} {noun}.",
    "Write an introduction for an essay on {noun} and {noun}.",
    "Write a dialogue between a {job} and a {job} about {noun}.",
    "Write a thank-you note for the {noun}.",
    "Write a recipe with {noun}.",
    "Write three sentences about {noun}.",
    "Give me a title for a book about {noun}.",
    "Imagine you are a {noun}. Describe your day.",
    "Continue this story: {sentence}",
)
CHATS = (
    "What is a {defined}?" + TURN + "A {defined} is {its definition}." + TURN + "Can you give me an example?",
    "Define {defined}." + TURN + "{defined}: {its definition}." + TURN + "Why does it matter to a {job}?",
    "Give me a sentence." + TURN + "{sentence}" + TURN + "Now write one more like it, about {noun}.",
    "Hi, I am {name}." + TURN + "Hello {name}! How can I help you?" + TURN + "Tell me something about {noun}.",
    "What is {number} + {small}?" + TURN + "Let me think about it." + TURN + "And what is {number} - {small}?",
    "{sentence}" + TURN + "Tell me more about it." + TURN + "It is about a {noun}. What should I do next?",
)
# How texts begin, for a target that continues text and answers nobody.
BEGINNINGS = (
    "{sentence} {sentence}",
    "The {noun} is",
    "{defined}: {its definition}. It",
    "How to {verb} a {noun}\n\n1.",
    "Q: What is a {noun}?\nA:",
    'def {function}(value):\n    """{does}."""\n',
    "import {module}\n\n\ndef",
    "Once upon a time there was a {adjective} {noun}. {sentence}",
    "Dear {name},\n\nThank you for the {noun}.",
    "{name} has {number} coins and gives {small} to {friend}. The number of coins that are left is",
    "{few} facts about {noun}:\n\n-",
    "{name}: {sentence}\n{friend}:",
    "In this chapter we look at the {noun} and its {noun}. {sentence}",
    "| {noun} | {noun} |\n| --- | --- |\n|",
)
KINDS = ((QUESTIONS, 6), (CODE, 5), (SUMS, 4), (WRITING, 4), (LISTS, 3), (REWRITING, 3), (EXTRACTION, 2), (CHATS, 2))
FIELD = re.compile(r"(\b[Aa] )?\{([a-z ]+)\}")


class NaturalPrompts:
    """A source of prompts: questions, instructions, code, sums, lists, rewriting, extraction, writing and
    conversations of two turns; beginnings of texts where the target `continues` and has no chat template."""

    size: int | None = None

    def __init__(self, words: Words, config: DataConfig, continues: bool) -> None:
        self.words, self.config = words, config
        self.kinds, self.weights = zip(*(((BEGINNINGS, 1),) if continues else KINDS), strict=True)

    def shard(self, number: int) -> list[str]:
        """`shard_questions` different prompts; the same for the same words, seed and number."""
        rng = self.generator(number)
        found: dict[str, None] = {}
        while len(found) < self.config.shard_questions:
            (templates,) = rng.choices(self.kinds, self.weights)
            text = self.filled(rng.choice(templates), rng)
            if len(text) <= LONGEST:
                found[text] = None
        return list(found)

    def generator(self, number: int) -> random.Random:
        return random.Random(f"{self.config.seed}/natural/{number}")

    def filled(self, template: str, rng: random.Random) -> str:
        """A person, a job, a word with its definition and a function are the same wherever the template names them;
        of all others every field is drawn anew."""
        words = self.words
        defined, its_definition = rng.choice(words.definitions)
        function, does = rng.choice(words.functions)
        name, friend = rng.sample(NAMES.split(), 2)
        told = {"defined": defined, "its definition": its_definition, "function": function, "does": does}
        told |= {"name": name, "friend": friend, "job": rng.choice(JOBS.split())}
        drawn: dict[str, Sequence[str]] = {
            "noun": words.nouns,
            "verb": words.verbs,
            "adjective": words.adjectives,
            "sentence": words.sentences,
            "definition": words.meanings,
            "language": LANGUAGES.split(),
            "module": MODULES.split(),
        }

        def fill(field: re.Match[str]) -> str:
            article, kind = field.groups()
            if kind in told:
                text = told[kind]
            elif kind in NUMBERS:
                text = str(rng.randint(*NUMBERS[kind]))
            else:
                text = rng.choice(drawn[kind])
            if article is None:
                return text
            return f"{article[0]}n {text}" if text[0] in "aeiouAEIOU" else article + text

        return FIELD.sub(fill, template)
