"""The layers of ARCHITECTURE.md as a table, and which module a file belongs to."""

import re

# A module may include itself and what stands here. "leaf" is any one transport; it may not include
# another one.
MAY_INCLUDE = {
    "base": set(),
    "interface": {"base"},
    "fabric": {"interface", "base"},
    "leaf": {"fabric", "interface", "base"},
    "core": {"interface", "base"},
    "pages": {"base"},
    "handoff": {"pages", "core", "interface", "base"},
    "bootstrap": {"base"},
    "binding": {"core", "interface", "base"},
    "router": {"bootstrap", "base"},
    "programs": {
        "router",
        "bootstrap",
        "handoff",
        "pages",
        "core",
        "leaf",
        "fabric",
        "interface",
        "base",
        "worker",
    },
    "tests": {
        "binding",
        "programs",
        "worker",
        "router",
        "bootstrap",
        "handoff",
        "pages",
        "core",
        "leaf",
        "fabric",
        "interface",
        "base",
    },
}

# Headers belong to the module that defines them; these do not follow from their folder. control_net.h
# is the engine's seam to the network, beside transport.h: the simulator implements both. Whom it turns
# away it says in the words of refusals.h.
HEADERS = {
    "transport/include/kvl/transport.h": "interface",
    "transport/core/control_net.h": "interface",
    "transport/core/refusals.h": "interface",
    "transport/include/kvl/engine.h": "core",
    "kvcache/include/kvl/handoff.h": "handoff",
    "kvcache/include/kvl/bootstrap_client.h": "bootstrap",
    "kvcache/include/kvl/kvl.h": "binding",
}
FOLDERS = [
    ("transport/include/", "base"),
    ("transport/base/", "base"),
    ("transport/core/", "core"),
    ("transport/fabric/", "fabric"),
    ("kvcache/handoff/", "handoff"),
    ("kvcache/bootstrap/", "bootstrap"),
    ("kvcache/capi/", "binding"),
    ("kvcache/", "pages"),
    ("router/", "router"),
    ("tools/worker/", "worker"),
    ("tools/", "programs"),
    ("bench/", "programs"),
    ("tests/", "tests"),
]
NO_TRANSPORTS = {"base", "core", "fabric", "include"}
GENERATED = {"transports.inc", "subcommands.inc", "fuzz_targets.inc"}
INCLUDE = re.compile(r'^\s*#\s*include\s*(?:"([^"]+)"|<(kvl/[^>]+)>)')


def transport_of(path):
    """The name of the transport whose folder holds `path`, or None."""
    match = re.match(r"transport/([^/]+)/", path)
    return match.group(1) if match and match.group(1) not in NO_TRANSPORTS else None


def module_of(path):
    if path in HEADERS:
        return HEADERS[path]
    if transport_of(path):
        return "leaf"
    return next((module for folder, module in FOLDERS if path.startswith(folder)), None)


def is_public(path):
    return "/include/kvl/" in path


def resolve(including, included, files):
    """The path that an include names, or None. The worker's folder stands alone: its includes begin
    with its own name."""
    places = [included, "tools/" + included, including.rsplit("/", 1)[0] + "/" + included]
    places += [f"{top}/include/{included}" for top in ("transport", "kvcache", "router", "cuda")]
    return next((place for place in places if place in files), None)


def allowed(source, target):
    own, other = module_of(source), module_of(target)
    if own == "worker":
        return other == "worker" or is_public(target)
    if own == other == "leaf":
        return transport_of(source) == transport_of(target)
    return own == other or other in MAY_INCLUDE.get(own, set())


def check(files):
    for path, text in sorted(files.items()):
        if not path.endswith((".cc", ".h")) or module_of(path) is None:
            continue
        for number, line in enumerate(text.splitlines(), 1):
            match = INCLUDE.match(line)
            if not match:
                continue
            included = match.group(1) or match.group(2)
            target = resolve(path, included, files)
            if target is None:
                if included.rsplit("/", 1)[-1] not in GENERATED:
                    yield f"{path}:{number}: no file of the project is {included}"
            elif not allowed(path, target):
                yield (
                    f"{path}:{number}: {module_of(path)} may not include {target} "
                    f"({module_of(target)}): see the layers in ARCHITECTURE.md"
                )
