#!/usr/bin/env python3
"""Writes a CUDA source as what g++ compiles against emulator.h. Usage: translate.py FROM TO

Launches, kernel<<<grid, block, ...>>>(arguments), become emulator::launch([&] { kernel(arguments); }, grid, block), and
the tensor cores' instruction a call. All else is C++ already.
"""

import pathlib
import re
import sys

PAIRS = {"(": ")", "<": ">", "[": "]", "{": "}"}


def closing(text, at):
    """Place of the bracket that closes the one at `at`."""
    opening, depth = text[at], 0
    for place in range(at, len(text)):
        depth += (text[place] == opening) - (text[place] == PAIRS[opening])
        if depth == 0:
            return place
    raise SystemExit(f"no {PAIRS[opening]} closes {text[at:at + 40]!r}")


def kernel_start(text, end):
    """Where the name of a kernel begins, with its template arguments, that ends before `end`."""
    at = len(text[:end].rstrip()) - 1
    if text[at] == ">":
        depth = 0
        while True:
            depth += (text[at] == ">") - (text[at] == "<")
            at -= 1
            if depth == 0:
                break
    while text[at].isalnum() or text[at] == "_":
        at -= 1
    return at + 1


def arguments(text):
    """What commas outside of brackets part."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{<") - (letter in ")]}>")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts]


def without_launches(text):
    while (at := text.find("<<<")) >= 0:
        end = text.index(">>>", at)
        call = end + 3
        last = closing(text, call)
        begin = kernel_start(text, at)
        kernel, (grid, block, *_) = text[begin:at], arguments(text[at + 3:end])
        text = f"{text[:begin]}emulator::launch([&] {{ {kernel}{text[call:last + 1]}; }}, dim3({grid}), dim3({block})){text[last + 1:]}"
    return text


def translated(text):
    text = without_launches(text.replace("#pragma unroll\n", ""))
    return re.sub(r'asm\("mma\.sync\.aligned\.m16n8k16\..*?\);', "emulator::multiply_add(sums, a.pair, b0, b1);", text, flags=re.DOTALL)


if __name__ == "__main__":
    source, target = map(pathlib.Path, sys.argv[1:])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(translated(source.read_text()))
