"""Step-by-step solutions, one function a family: reasoning-gym's entry in, lines of working out.

Each line does one small thing, so that a small model can learn to do it.
"""

import re
from typing import Any

Entry = dict[str, Any]


def chain_sum(entry: Entry) -> str:
    """4 - 1 - 7: one operation a line, from the left."""
    total, *rest = re.findall(r"-?\d+|[+-]", entry["metadata"]["expression"].replace(" ", ""))
    lines, tokens = [], "".join(rest)
    for sign, number in re.findall(r"([+-])(\d+)", tokens):
        after = int(total) + int(sign + number)
        lines.append(f"{total} {sign} {number} = {after}\n")
        total = str(after)
    return "".join(lines)


def gcd(entry: Entry) -> str:
    """Euclid's algorithm."""
    a, b = entry["metadata"]["numbers"]
    a, b, lines = max(a, b), min(a, b), []
    while b:
        lines.append(f"{a} % {b} = {a % b}\n")
        a, b = b, a % b
    return "".join(lines)


def leg_counting(entry: Entry) -> str:
    """Legs of each kind, then their running sum."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    lines, total = [], 0
    for animal, count in entry["metadata"]["animals"].items():
        legs = count * ANIMALS[animal]
        lines.append(f"{count} * {ANIMALS[animal]} = {legs}\n")
        if len(lines) > 1:
            lines.append(f"{total} + {legs} = {total + legs}\n")
        total += legs
    return "".join(lines)


def products(entry: Entry) -> str:
    """Tens and ones of the first number, each times the second; nothing to write down for a single digit."""
    a, b = map(int, entry["metadata"]["expression"].split(" * "))
    tens, ones = a // 10 * 10, a % 10
    if not tens or not ones:
        return ""
    return f"{tens} * {b} = {tens * b}\n{ones} * {b} = {ones * b}\n{tens * b} + {ones * b} = {a * b}\n"


def spell_backward(entry: Entry) -> str:
    """The letters apart, then in the other order."""
    word = entry["metadata"]["word"]
    return f"{' '.join(word)}\n{' '.join(reversed(word))}\n"


def letter_counting(entry: Entry) -> str:
    """Each word spelt, with the number of times the letter is in it."""
    letter, words = entry["metadata"]["target_letter"], entry["metadata"]["span"]
    return "".join(f"{' '.join(word.lower())}: {word.lower().count(letter)}\n" for word in words)


def number_filtering(entry: Entry) -> str:
    """Each number, kept or not."""
    kept = set(entry["metadata"]["result"])
    return "".join(f"{n} {'yes' if n in kept else 'no'}\n" for n in entry["metadata"]["original_numbers"])


def count_bits(entry: Entry) -> str:
    """The binary digits."""
    return f"{' '.join(entry['metadata']['binary'])}\n"
