#!/usr/bin/env python3
"""gpu_qualify.sh and gpu_table.py over a pretended bundle: programs that write what the real ones would."""

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))

STEP_BENCH = """#!/usr/bin/env python3
import json, sys
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
if flags["model"].endswith("llama_33b"):
    print("llama_33b does not fit")
    sys.exit(1)
line = {"model": flags["model"], "rank": int(flags["rank"]), "rows": int(flags["rows"]), "tokens": int(flags["tokens"]),
        "tokens_per_second": 17000.0, "useful_tflops": 600.0, "dense_tflops": 790.0, "planned_bytes": 46e9,
        "host_bytes": 5e9, "device_bytes": 47.5e9, "recompute": "nothing is recomputed"}
open(flags["json"], "a").write(json.dumps(line) + "\\n")
print("17000 tokens/s")
"""

OP_BENCH = """#!/usr/bin/env python3
import json, sys
def op(name, us, tflops, gbytes, limit=0.5, **more):
    return {"name": name + "/real_time", "run_type": "iteration", "real_time": us, "TFLOP/s": tflops, "GB/s": gbytes,
            "limit": limit, **more}
flags = dict(a[2:].split("=", 1) for a in sys.argv[1:])
json.dump({"context": {"device": "cuda:0 (H100)", "limit_tflops": "800", "limit_gbytes": "3000",
                       "limit_tflops_by": "DEQUANTIZED"},
           "benchmarks": [op("linear_forward/nf4/M2048/4096x4096/dequantized", 120, 573, 300),
                          op("linear_forward/nf4/M2048/4096x4096/fused", 100, 687, 300, 0.86),
                          op("linear_forward/nf4_r16/M2048/4096x4096/fused", 101, 687, 300),
                          op("linear_forward/bf16/M2048/4096x4096/dequantized", 96, 716, 300)]
           if flags["benchmark_filter"][0] == "^" else [
                          op("dequantize/nf4_dq/bf16/4096x4096", 16, 0.1, 2700),
                          op("attention_forward/llama3_8b/T2048", 90, 381, 400),
                          {"name": "rope/x/real_time", "error_occurred": True, "error_message": "no memory"}]},
          open(flags["benchmark_out"], "w"))
"""

PEERS = {"context": {"torch": "2", "bitsandbytes": "0.50"},
         "ops": [{"name": "copy", "contender": "torch", "seconds": 1, "gbytes": 2900.0},
                 {"name": "linear_forward/bf16/M2048/4096x4096", "contender": "torch", "seconds": 95e-6},
                 {"name": "linear_forward/nf4/M2048/4096x4096", "contender": "bitsandbytes", "seconds": 150e-6},
                 {"name": "dequantize/nf4_dq/bf16/4096x4096", "contender": "bitsandbytes", "seconds": 32e-6}],
         "steps": [{"model": "llama3_8b", "contender": "nf4", "checkpointing": True, "tokens_per_second": 8500.0,
                    "device_bytes": 30e9},
                   {"model": "llama3_8b", "contender": "nf4", "checkpointing": False, "error": "out of memory"}],
         "skipped": {"ops": ["a rival that is not there"], "steps": []}}


def write(path, text, executable=False):
    with open(path, "w") as file:
        file.write(text)
    if executable:
        os.chmod(path, os.stat(path).st_mode | stat.S_IEXEC)


class Qualify(unittest.TestCase):
    def setUp(self):
        self.bundle = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, self.bundle)
        os.makedirs(os.path.join(self.bundle, "bin"))
        os.makedirs(os.path.join(self.bundle, "path"))
        for name in ("gpu_qualify.sh", "gpu_table.py"):
            shutil.copy(os.path.join(HERE, name), self.bundle)
        self.program("bin/cuda_tests", "#!/bin/sh\necho '[  PASSED  ] 5 tests.'\n")
        self.program("bin/step_bench", STEP_BENCH)
        self.program("bin/op_bench", OP_BENCH)
        self.program("path/nvidia-smi", "#!/bin/sh\necho 'NVIDIA H100 80GB HBM3'\n")
        self.results = os.path.join(self.bundle, "results", "h100_80gb_hbm3")

    def program(self, name, text):
        write(os.path.join(self.bundle, name), text, executable=True)

    def qualify(self, *parts, **environment):
        path = os.path.join(self.bundle, "path") + ":/usr/bin:/bin"
        return subprocess.run([os.path.join(self.bundle, "gpu_qualify.sh"), *parts], text=True, capture_output=True,
                              env={"PATH": path, "QLORA_PYTHON": sys.executable, **environment})

    def read(self, name):
        with open(os.path.join(self.results, name)) as file:
            return file.read()

    def test_goes_on_after_a_failing_part_and_names_it(self):
        self.program("bin/cuda_tests", "#!/bin/sh\necho broken; exit 3\n")
        run = self.qualify("tests", "ops", "steps")
        self.assertEqual(run.returncode, 1)
        self.assertIn("failed: tests\n", run.stderr)
        self.assertIn("broken", run.stdout)
        self.assertEqual([line.split()[:2] for line in self.read("parts.txt").splitlines()],
                         [["tests", "failed"], ["ops", "passed"], ["steps", "passed"]])
        self.assertEqual(len(self.read("steps.json").splitlines()), 6)

    def test_a_part_is_stopped_at_its_limit(self):
        self.program("bin/cuda_tests", "#!/bin/sh\nexec sleep 60\n")
        run = self.qualify("tests", QLORA_SECONDS_TESTS="1")
        self.assertEqual(run.returncode, 1)
        self.assertIn("stopped after 1 seconds", run.stdout)

    def test_says_what_a_machine_lacks(self):
        run = self.qualify("sanitize")
        self.assertEqual(run.returncode, 1)
        self.assertIn("compute-sanitizer is not here", run.stdout)
        self.program("path/nvidia-smi", "#!/bin/sh\nexit 9\n")
        self.assertEqual(self.qualify("tests").returncode, 69)
        self.assertEqual(self.qualify("test").returncode, 64)

    def test_a_model_that_fails_leaves_the_others(self):
        run = self.qualify("memory")
        self.assertEqual(run.returncode, 1)
        self.assertIn("does not fit", run.stdout)
        self.assertEqual([json.loads(line)["rank"] for line in self.read("memory.json").splitlines()], [64])

    def test_a_failing_part_leaves_the_figures_of_an_earlier_run(self):
        self.assertEqual(self.qualify("ops").returncode, 0)
        self.program("bin/op_bench", "#!/bin/sh\nexit 1\n")
        self.assertEqual(self.qualify("ops").returncode, 1)
        self.assertIn("benchmarks", self.read("ops_other.json"))

    def test_table(self):
        self.assertEqual(self.qualify("ops", "steps", "memory").returncode, 1)
        write(os.path.join(self.results, "peers.json"), json.dumps(PEERS))
        self.assertEqual(self.qualify("table").returncode, 0)
        text = self.read("README.md")
        for line in (
                "| memory | failed |",
                # 600 of 800 TFLOP/s; twice the rival, which has no memory without checkpointing.
                "| llama3_8b | 17000 | 75 % | 75 % | 46.00 | 47.50 | nothing is recomputed "
                "| nf4: 8500 (2.00x), 30.0 GB | nf4: out of memory |",
                "| llama_65b | 64 | 1 x 2048 | 46.00 | 47.50 | 48 | yes | 5.00 | 17000 |",
                # The faster variant, against the fastest dense product.
                "| M2048 | 4096x4096 | 100.0 | fused; default: dequantized, 120.0 µs | 687 | 300 | 86 % | 0.95 | 0.95 | 0.95 | 1.50 | +1.0 % |",
                "| dequantize/nf4_dq/bf16/4096x4096 | 16.0 | 2700 | 90 % | 85 % | 2.00 bitsandbytes |",
                "- a rival that is not there", "- rope/x: no memory"):
            self.assertIn(line, text)

    def test_table_of_nothing(self):
        os.makedirs(self.results)
        self.assertEqual(self.qualify("table").returncode, 0)
        self.assertIn("Not measured: ops_linear.json, ops_other.json, peers.json, steps.json, memory.json.", self.read("README.md"))


if __name__ == "__main__":
    unittest.main()
