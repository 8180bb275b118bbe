"""Lengths and repetition: reported, never judged."""

import re
from collections import defaultdict

WINDOW = 6  # lines that must be equal in a row to count as repeated
SCOPE = re.compile(r"\b(namespace|class|struct|union|enum|extern)\b")


def without_comments_and_texts(text):
    """The same number of lines, with comments, strings and preprocessor lines blanked."""
    keep_lines = lambda match: "\n" * match.group(0).count("\n")
    text = re.sub(r'R"(\w*)\(.*?\)\1"', keep_lines, text, flags=re.DOTALL)
    text = re.sub(
        r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|(?<![0-9a-fA-F])\'(?:\\.|[^\'\\\n])+\'',
        keep_lines,
        text,
        flags=re.DOTALL,
    )
    return re.sub(r"^[ \t]*#(?:[^\n]*\\\n)*[^\n]*", keep_lines, text, flags=re.MULTILINE)


def function_lengths(text):
    """[(first line, lines)] of every function body that stands in a namespace or a class. A brace
    without a blank before it opens a value, as the format has it."""
    found, stack, line, head = [], [], 1, ""
    code = without_comments_and_texts(text)
    for i, c in enumerate(code):
        if c == "\n":
            line += 1
        if c == "{":
            value = i > 0 and (code[i - 1].isalnum() or code[i - 1] in "_>(,{")
            outside = all(kind == "scope" for kind, _ in stack)
            if value:
                kind = "value"
            elif SCOPE.search(head) and "(" not in head:
                kind = "scope"
            else:
                kind = "function" if outside and "(" in head else "other"
            stack.append((kind, line - head.strip().count("\n")))
            if kind != "value":
                head = ""
        elif c == "}":
            kind, first = stack.pop() if stack else ("other", line)
            if kind == "function":
                found.append((first, line - first + 1))
            if kind != "value":
                head = ""
        elif c == ";":
            head = ""
        elif not stack or stack[-1][0] != "value":
            head += c
    return found


def repeated_share(files):
    """The share of lines that are in a run of WINDOW equal lines somewhere else as well."""
    places = defaultdict(list)
    total = 0
    for path, text in files.items():
        lines = [
            (n, line.strip())
            for n, line in enumerate(text.splitlines())
            if len(line.strip()) > 2 and not line.startswith(("#include", "//"))
        ]
        total += len(lines)
        for i in range(len(lines) - WINDOW + 1):
            window = lines[i : i + WINDOW]
            places[tuple(line for _, line in window)].append([(path, n) for n, _ in window])
    repeated = {
        place
        for windows in places.values()
        if len(windows) > 1
        for window in windows
        for place in window
    }
    return len(repeated) / total if total else 0.0


def percentile(values, share):
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0


def report(files):
    """Sentences about the C++ of the product and of the tests."""
    for name, wanted in (
        ("product", lambda path: not path.startswith("tests/")),
        ("tests", lambda path: path.startswith("tests/")),
    ):
        chosen = {
            path: text
            for path, text in files.items()
            if path.endswith((".cc", ".h")) and wanted(path)
        }
        lengths = [
            (lines, f"{path}:{first}")
            for path, text in chosen.items()
            for first, lines in function_lengths(text)
        ]
        counts = [text.count("\n") for text in chosen.values()]
        just_lines = [lines for lines, _ in lengths]
        longest = ", ".join(
            f"{place} ({lines})" for lines, place in sorted(lengths, reverse=True)[:3]
        )
        yield (
            f"{name}: {len(chosen)} files, {sum(counts)} lines, file median {percentile(counts, 0.5)} "
            f"p90 {percentile(counts, 0.9)}; {len(lengths)} functions, p99 {percentile(just_lines, 0.99)} lines, "
            f"{sum(lines > 100 for lines in just_lines)} above 100; {100 * repeated_share(chosen):.1f}% repeated"
        )
        yield f"  longest functions: {longest}"
