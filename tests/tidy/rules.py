"""What must hold in every file. A rule takes {path: text} and yields one sentence per violation."""

import re

from layers import INCLUDE, is_public, resolve, transport_of

# Words are put together here, so that this file does not violate its own rules.
UNFINISHED = re.compile(r"\b(" + "|".join(["TO" "DO", "FIX" "ME", "XX" "X", "HA" "CK"]) + r")\b")
SLEEP = re.compile(
    r"\b(sleep_for|sleep_until|usleep|nanosleep|(?:time|asyncio)\.sleep)\b"
    r"|(?<!\w)::sleep\s*\(|^\s*sleep\s+[\d$]"
)
GETENV = re.compile(r"\b(?:secure_)?getenv\s*\(")
ELSEWHERE = [
    (re.compile(r"(?<![\w./-])/work\b"), "a folder of somebody's machine"),
    (
        re.compile(r"(?<![\w./-])(?:\./)?share" r"d/(?:design|reference|data)\b"),
        "material that is not in the project",
    ),
    (
        re.compile(
            r"\b(?:pypi\.org|files\.pythonhosted\.org|registry\.npmjs\.org|crates\.io|proxy\.golang\.org"
            r"|docker\.io|ghcr\.io|quay\.io|deb\.debian\.org|ftp\.debian\.org)\b"
        ),
        "a package registry",
    ),
    (re.compile(r"\bissue #?\d|\bissues show\b", re.IGNORECASE), "an issue's number"),
]
FABRICS = {"tcp", "shm", "sim", "fault", "libfabric", "efa", "verbs", "ibv", "ucx", "nccl", "cuda"}
SETTING = re.compile(
    r'setting<&[^>]+>\(\s*"([^"]*)"\s*,\s*"[^"]*"\s*,(?:(?!setting<)[^"])*((?:"[^"]*"\s*)*)'
)
README_LINES_MAX = 80


def lines_of(files, wanted):
    for path, text in sorted(files.items()):
        if wanted(path):
            for number, line in enumerate(text.splitlines(), 1):
                yield path, number, line


def is_cxx(path):
    return path.endswith((".cc", ".h"))


def own_rules(path):
    return path.startswith("tests/tidy/")


def environment_in_one_place(files):
    """Settings are read once, at the top; a test may look at its own environment."""
    for path, number, line in lines_of(files, is_cxx):
        if (
            GETENV.search(line)
            and path != "transport/base/config.cc"
            and not path.startswith("tests/")
        ):
            yield f"{path}:{number}: only transport/base/config.cc reads the environment"


def nothing_unfinished(files):
    for path, number, line in lines_of(files, lambda path: not own_rules(path)):
        if UNFINISHED.search(line):
            yield f"{path}:{number}: unfinished work: {line.strip()}"


def no_sleep_in_tests(files):
    wanted = lambda path: path.startswith("tests/") and path.endswith((".cc", ".h", ".py", ".sh"))
    for path, number, line in lines_of(files, lambda path: wanted(path) and not own_rules(path)):
        if SLEEP.search(line.split("//")[0]):
            yield f"{path}:{number}: a test waits for what it means, with a deadline, and never sleeps"


def nothing_from_elsewhere(files):
    for path, number, line in lines_of(files, lambda path: not own_rules(path)):
        for pattern, what in ELSEWHERE:
            if pattern.search(line):
                yield f"{path}:{number}: names {what}: {line.strip()}"


def no_conditional_transport(files):
    """One binary starts everywhere: a fabric is chosen at run time, not by the preprocessor."""
    names = FABRICS | {name for name in map(transport_of, files) if name}
    for path, number, line in lines_of(files, is_cxx):
        if not re.match(r"\s*#\s*(if|ifdef|ifndef|elif)\b", line):
            continue
        named = names & set(re.split(r"[\W_]+", line.split("//")[0].lower()))
        if named - {transport_of(path)}:
            yield f"{path}:{number}: #if on {', '.join(sorted(named))} outside its folder"


def every_source_is_built(files, compiled):
    """`compiled` are the paths of compile_commands.json. Headers must be included by something."""
    included = set()
    for path, _, line in lines_of(files, is_cxx):
        match = INCLUDE.match(line)
        if match:
            included.add(resolve(path, match.group(1) or match.group(2), files))
    for path in sorted(filter(is_cxx, files)):
        # Built by tests/consumer, against the install.
        if path.startswith("tests/consumer/project/") or path == "tools/worker/main.cc":
            continue
        if path.endswith(".cc") and path not in compiled:
            yield f"{path}: belongs to no target"
        if path.endswith(".h") and path not in included and not is_public(path):
            yield f"{path}: nobody includes it"


NAMESPACE = re.compile(r"^namespace\s*([\w:]*)\s*\{")
TYPE = re.compile(r"^(?:template\s*<.*>\s*)?(?:struct|class)\s+(?:\[\[\w+\]\]\s*)?(\w+)(?!\w|::)[^;]*$")


def one_type_per_name(files):
    """Two types of one name in one namespace are one to the linker, which keeps the functions of
    either: a program may free the one with the destructor of the other."""
    places = {}
    for path, text in sorted(files.items()):
        if not is_cxx(path) or path.startswith("tests/"):
            continue
        spaces = []
        for number, line in enumerate(text.splitlines(), 1):
            if space := NAMESPACE.match(line):
                spaces.append(space.group(1))
            elif re.match(r"^\}\s*//\s*namespace", line) and spaces:
                spaces.pop()
            elif (found := TYPE.match(line)) and "" not in spaces:
                name = "::".join([*spaces, found.group(1)])
                first = places.setdefault(name, path)
                if first != path:
                    yield f"{path}:{number}: {name} is also in {first}"


def every_folder_is_described(files):
    """By a README.md of one page, or by a row of the folder's above."""
    folders = {
        path.rsplit("/", 1)[0]
        for path in files
        if is_cxx(path) or path.endswith((".py", ".sh", ".cmake"))
    }
    for folder in sorted(folders - {""}):
        if f"{folder}/README.md" in files or folder.endswith("/include/kvl"):
            continue
        up, _, name = folder.rpartition("/")
        while up and f"{up}/README.md" not in files:
            up, _, upper = up.rpartition("/")
            name = f"{upper}/{name}"
        if not re.search(
            rf"`[^`]*\b{re.escape(name)}\b[^`]*`", files.get(f"{up}/README.md", "") if up else ""
        ):
            yield f"{folder}: no README.md, and none above has a word about `{name}`"
    for path, text in sorted(files.items()):
        length = text.count("\n")
        if path.endswith("README.md") and "/" in path and length > README_LINES_MAX:
            yield f"{path}: {length} lines; a folder's README is one page, {README_LINES_MAX} lines"


def settings_in(files):
    """(name, help, path) of every row that the sources declare."""
    for path, text in sorted(files.items()):
        if is_cxx(path) and not path.startswith("tests/") and not is_public(path):
            for match in SETTING.finditer(text):
                yield match.group(1), "".join(re.findall(r'"([^"]*)"', match.group(2))), path


def settings_are_documented(files, printed=None):
    """`printed` are the names that `kvlane config` shows; None: not asked."""
    seen = {}
    for name, text, path in settings_in(files):
        if name in seen:
            yield f"{path}: the setting {name} is also one of {seen[name]}"
        seen[name] = path
        if len(text) < 8:
            yield f"{path}: the setting {name} has no help text"
        if not re.fullmatch(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)?", name):
            yield f"{path}: the setting {name} is not lower_case or component.lower_case"
        if printed is not None and name not in printed:
            yield f"{path}: `kvlane config` does not show the setting {name}"
