"""What jobs/test.sh makes of a test log: counts, and skips with their reasons. Arguments: the source tree."""

import json
import os
import subprocess
import sys
import tempfile
import unittest

SCRIPT = os.path.join(sys.argv[1], "test", "outcome.py")

TESTS = [
    {"name": "stablemoe:unit / norm", "result": "OK", "stdout": "3 entries, 0 skipped\n"},
    {"name": "stablemoe:unit / bad", "result": "FAIL", "stdout": ""},
    {"name": "stablemoe:unit / slow", "result": "TIMEOUT", "stdout": ""},
    {"name": "stablemoe:slurm / cluster", "result": "SKIP", "stdout": "",
     "stderr": "skipped: cluster.sh: missing: munged; on Debian jobs/install.sh --slurm brings them\n"},
    {"name": "stablemoe:lint / quiet", "result": "SKIP", "stdout": ""},
    {"name": "stablemoe:e2e / using", "result": "OK", "stdout": "", "stderr":
     "test_a (__main__.Using.test_a) ... ok\n"
     "test_disk (__main__.Using.test_disk)\nWith a docstring. ... skipped 'cannot mount a file system: no'\n"
     "test_page (__main__.Using.test_page) ... skipped 'groff is missing; jobs/install.sh --test brings it'\n"},
]


class Outcome(unittest.TestCase):
    def outcome(self, tests, **env):
        with tempfile.TemporaryDirectory() as directory:
            log = os.path.join(directory, "testlog.json")
            if tests is not None:
                with open(log, "w") as file:
                    file.writelines(json.dumps(test) + "\n" for test in tests)
            kept = {name: value for name, value in os.environ.items() if name != "CI"}
            done = subprocess.run([sys.executable, SCRIPT, log], capture_output=True, text=True, check=False, env={**kept, **env})
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout.splitlines()

    def test_counts_and_reasons(self):
        counts, *skips = self.outcome(TESTS)
        self.assertEqual(counts, "2 2 4")
        self.assertEqual(skips, [
            "slurm / cluster\tcluster.sh: missing: munged; on Debian jobs/install.sh --slurm brings them",
            "lint / quiet\tno reason given",
            "e2e / using\tcannot mount a file system: no",
            "e2e / using\ttest_page: groff is missing; jobs/install.sh --test brings it"])

    def test_ci(self):
        """What should have been installed is missing: a failure. What a machine cannot is none."""
        counts, *skips = self.outcome(TESTS, CI="true")
        self.assertEqual(counts, "1 4 1")
        self.assertEqual([skip.split("\t")[0] for skip in skips if "a failure, since CI=true" in skip],
                         ["slurm / cluster", "e2e / using"])

    def test_nothing_ran(self):
        self.assertEqual(self.outcome(None), ["0 1 0"])


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
