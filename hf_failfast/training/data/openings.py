"""How a user's turn may begin: the target completes one of these into a question."""

import random

# `{a}` and `{b}` become random whole numbers, which keeps arithmetic questions from repeating each other.
OPENINGS = (
    # chat and advice
    "Hi! Can you help me",
    "I am learning",
    "I need some advice on",
    "How do I",
    "How can I",
    "What should I",
    "Can you recommend",
    "Give me some tips",
    "My friend",
    # facts and explanations
    "What is",
    "What are",
    "What is the capital of",
    "What is the difference between",
    "Who was",
    "When did",
    "Where is",
    "Why do",
    "How does",
    "Explain",
    "Explain in simple terms",
    "Describe",
    "Tell me about",
    "Define",
    "Compare",
    # code
    "Write a Python function that",
    "Write a Python function to",
    "Write a Python script that",
    "Write a Python class",
    "Implement",
    "Write a SQL query",
    "Write a JavaScript function",
    "Write a bash command",
    "How do I use Python to",
    "Fix the bug in this Python code:",
    "What does this Python code do?",
    "Write a unit test for",
    # lists
    "List",
    "List five",
    "List the",
    "Name three",
    "Give me a list of",
    "Give me {a} examples of",
    "What are the steps to",
    "Write a recipe for",
    "Create a shopping list",
    "Create a schedule for",
    # arithmetic and word problems
    "What is {a} + {b}",
    "What is {a} - {b}",
    "What is {a} times {b}",
    "Calculate",
    "Solve the equation",
    "A train travels {a} miles",
    "If a shirt costs ${a}",
    "Tom has {a} apples",
    "Sarah bought {a}",
    "How many",
    "Convert {a}",
    # rewriting
    "Summarize the following text:",
    "Rewrite the following sentence",
    "Translate the following sentence to French:",
    "Correct the grammar of this sentence:",
    "Make the following text more concise:",
    "Classify the sentiment of this review:",
    "Extract the names from this text:",
    # writing
    "Write a short story about",
    "Write a poem about",
    "Write an email to",
    "Write a letter to",
    "Write a paragraph about",
    "Write an essay on",
    "Write a product description for",
    "Write a conversation between",
    "Imagine you are",
)


def random_opening(rng: random.Random) -> str:
    """One opening with its numbers filled in, drawn from `rng` alone."""
    return rng.choice(OPENINGS).format(a=rng.randint(2, 99), b=rng.randint(2, 99))
