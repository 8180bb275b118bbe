#!/usr/bin/env python3
"""Every rule bites: it finds the planted violation, and nothing in the sample without it."""

import unittest

import layers
import measure
import rules

SHM_HEADER = {"transport/shm/shm_link.h": '#include "kvl/transport.h"\n'}
BASE_FILES = {
    "transport/include/kvl/status.h": "",
    "transport/include/kvl/transport.h": '#include "kvl/status.h"\n',
    "transport/include/kvl/engine.h": '#include "kvl/transport.h"\n',
    "transport/base/ring.h": "",
    "transport/core/rail.h": '#include "kvl/engine.h"\n#include "transport/base/ring.h"\n',
    "kvcache/include/kvl/transfer_plan.h": "#include <vector>\n",
    "kvcache/plan/segments.h": '#include "kvl/transfer_plan.h"\n',
    "tools/worker/batch.h": '#include <kvl/engine.h>\n',
    "tools/worker/rank.h": '#include "worker/batch.h"\n',
    **SHM_HEADER,
}


class Layers(unittest.TestCase):
    def found(self, path, text):
        return list(layers.check({**BASE_FILES, path: text}))

    def test_clean(self):
        self.assertEqual(list(layers.check(BASE_FILES)), [])

    def test_upwards_and_sideways(self):
        for path, include in {
            "transport/base/x.cc": "kvl/transport.h",  # the base knows nobody
            "transport/tcp/x.cc": "transport/shm/shm_link.h",  # nor a transport another
            "transport/shm/x.cc": "transport/core/rail.h",  # nor the engine
            "transport/core/x.cc": "transport/shm/shm_link.h",
            "kvcache/plan/x.cc": "kvl/engine.h",
            "kvcache/handoff/x.cc": "tools/worker/batch.h",
            "router/x.cc": "kvl/engine.h",
            "tools/worker/x.cc": "transport/base/ring.h",  # public headers only
        }.items():
            with self.subTest(path=path):
                self.assertEqual(len(self.found(path, f'#include "{include}"\n')), 1)

    def test_downwards(self):
        for path, include in {
            "transport/shm/x.cc": "transport/shm/shm_link.h",
            "kvcache/handoff/x.cc": "kvl/engine.h",
            "tests/x.cc": "transport/core/rail.h",
            "transport/core/registry.cc": "transports.inc",
        }.items():
            with self.subTest(path=path):
                self.assertEqual(self.found(path, f'#include "{include}"\n'), [])

    def test_no_such_file(self):
        self.assertEqual(len(self.found("router/x.cc", '#include "router/gone.h"\n')), 1)


class Lines(unittest.TestCase):
    def bites(self, rule, path, bad, good):
        self.assertEqual(len(list(rule({path: bad + "\n"}))), 1, bad)
        self.assertEqual(list(rule({path: good + "\n"})), [], good)

    def test_environment(self):
        self.bites(
            rules.environment_in_one_place,
            "router/x.cc",
            'std::getenv("HOME");',
            "target.getter();",
        )
        self.assertEqual(
            list(rules.environment_in_one_place({"transport/base/config.cc": 'getenv("A")'})), []
        )

    def test_unfinished(self):
        for word in ("TO" "DO: later", "// FIX" "ME", "XX" "X"):
            self.bites(rules.nothing_unfinished, "router/x.cc", word, "// a method of fixing")

    def test_sleep(self):
        for bad in (
            "std::this_thread::sleep_for(1ms);",
            "usleep(5);",
            "::sleep(1);",
            "time.sleep(1)",
        ):
            self.bites(
                rules.no_sleep_in_tests, "tests/x_test.cc", bad, "EXPECT_TRUE(asleep(pair));"
            )
        self.bites(rules.no_sleep_in_tests, "tests/x.sh", "  sleep 1", "# sleep 1 would be wrong")
        self.assertEqual(list(rules.no_sleep_in_tests({"router/x.cc": "sleep_for(pause);"})), [])

    def test_elsewhere(self):
        for bad in (
            "see /work" "/main/a.md",
            "from share" "d/design/x.md",
            "https://pypi.org/simple",
            "as issue" " #12 says",
        ):
            self.bites(
                rules.nothing_from_elsewhere,
                "docs/x.md",
                bad,
                "works with shared/private memory, ./a/work/b",
            )

    def test_conditional_transport(self):
        self.bites(
            rules.no_conditional_transport,
            "transport/core/x.cc",
            "#ifdef KVL_USE_EFA",
            "#ifdef SYS_pidfd_open",
        )
        self.bites(
            rules.no_conditional_transport,
            "router/x.cc",
            "#if __has_include(<ucx/api.h>)",
            "int ucx;",
        )
        self.assertEqual(
            list(rules.no_conditional_transport({"transport/tcp/x.cc": "#ifndef TCP_ULP\n"})), []
        )


class Tree(unittest.TestCase):
    def test_every_source_is_built(self):
        files = {"router/a.cc": '#include "router/a.h"\n', "router/a.h": ""}
        self.assertEqual(list(rules.every_source_is_built(files, {"router/a.cc"})), [])
        self.assertEqual(len(list(rules.every_source_is_built(files, set()))), 1)
        files["router/dead.h"] = ""
        self.assertEqual(len(list(rules.every_source_is_built(files, {"router/a.cc"}))), 1)

    def test_one_type_per_name(self):
        one = "namespace kvl {\nstruct Memory {\n  int a;\n};\n}  // namespace kvl\n"
        other = "namespace kvl {\nnamespace {\nstruct Memory {\n};\n}  // namespace\n}  // namespace kvl\n"
        declared = "namespace kvl {\nstruct Memory;\nstruct Memory::Way {\n};\n}  // namespace kvl\n"
        shm = one.replace("kvl {", "kvl::shm {")
        files = {"a/x.h": one, "b/x.cc": other, "c/x.h": declared, "d/x.h": shm}
        self.assertEqual(list(rules.one_type_per_name(files)), [])
        files["e/x.h"] = one
        self.assertEqual(len(list(rules.one_type_per_name(files))), 1)

    def test_every_folder_is_described(self):
        files = {
            "router/a.cc": "",
            "router/README.md": "A router. `http/` parses.\n",
            "router/http/b.cc": "",
        }
        self.assertEqual(list(rules.every_folder_is_described(files)), [])
        self.assertEqual(
            len(list(rules.every_folder_is_described({**files, "router/fleet/c.cc": ""}))), 1
        )
        self.assertEqual(len(list(rules.every_folder_is_described({"bench/a.cc": ""}))), 1)
        self.assertEqual(
            len(
                list(
                    rules.every_folder_is_described({**files, "router/README.md": "`http`\n" * 81})
                )
            ),
            1,
        )

    def test_settings(self):
        row = 'setting<&C::lanes>("tcp.lanes", "", 1, 64,\n  "connections "\n  "per peer"),\n'
        self.assertEqual(
            list(rules.settings_in({"a.cc": row})), [("tcp.lanes", "connections per peer", "a.cc")]
        )
        found = lambda files, printed=None: list(rules.settings_are_documented(files, printed))
        self.assertEqual(found({"a.cc": row}), [])
        self.assertEqual(found({"a.cc": row}, {"tcp.lanes"}), [])
        self.assertEqual(len(found({"a.cc": row}, set())), 1)
        self.assertEqual(len(found({"a.cc": row + row})), 1)
        self.assertEqual(len(found({"a.cc": 'setting<&C::x>("tcp.x", "", 0, 1, "")'})), 1)
        self.assertEqual(
            len(found({"a.cc": 'setting<&C::x>("Tcp-X", "", 0, 1, "a long help text")'})), 1
        )


class Measures(unittest.TestCase):
    def test_function_lengths(self):
        text = (
            'namespace a {\nstruct S {\n  S() : a_{1} {\n    f();\n  }\n  int a_{0};\n};\n'
            'int f(int x) {\n  if (x) {\n    return 1;  // }\n  }\n  return 2;\n}\nint v[] = {1, 2};\n}\n'
        )
        self.assertEqual([lines for _, lines in measure.function_lengths(text)], [3, 6])

    def test_repeated_share(self):
        block = "".join(f"line_{i}();\n" for i in range(8))
        self.assertEqual(measure.repeated_share({"a.cc": block}), 0.0)
        self.assertEqual(measure.repeated_share({"a.cc": block, "b.cc": block}), 1.0)


if __name__ == "__main__":
    unittest.main()
