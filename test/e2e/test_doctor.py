#!/usr/bin/env python3
"""`stablemoe doctor`: one line per finding, and a failing exit code where something is wrong."""

import os
import re
import shutil
import time

import program as p

LEVELS = ("ok", "warning", "wrong")


class Doctor(p.ProgramTest):
    @classmethod
    def setUpClass(cls):
        directory = p.tempfile.TemporaryDirectory(prefix="stablemoe-")
        cls.addClassCleanup(directory.cleanup)
        cls.directory = directory.name

    def findings(self, result):
        """Level -> lines, of all after the versions."""
        versions, _, rest = result.out.partition("\n\n")
        self.assertRegex(versions, r"^stablemoe \d+\.\d+\.\d+ .*\n(  .+\n)+  SentencePiece +\S+$", result)
        lines, _, summary = rest.strip().rpartition("\n\n")
        found = {level: [] for level in LEVELS}
        for line in lines.split("\n"):
            level, _, text = line.partition(" ")
            self.assertIn(level, LEVELS, result)
            found[level].append(text.strip())
        warnings, wrong = p.found(r"^(\d+) warnings?, (\d+) wrong$", summary).groups()
        self.assertEqual((int(warnings), int(wrong)), (len(found["warning"]), len(found["wrong"])), result)
        return found

    def doctor(self, *args, **how):
        result = self.program.run("doctor", *args, **how)
        self.assertEqual(os.listdir(self.directory), [], f"left behind: {result}")
        return result

    def test_fine(self):
        for ranks in (1, 2, 3, 4):
            with self.subTest(ranks=ranks):
                result = self.doctor(self.directory, ranks=ranks)
                self.assertNotRegex(result.out, "power of two|rounding")  # the same bits on any number
                self.assertFine(result)
                found = self.findings(result)
                for what in (f"{ranks} rank", "placement", "binding", "cores", "memory", "BLAS", "exchange", "disk",
                             "HDF5", "writing"):
                    self.assertEqual(sum(line.startswith(what) for line in found["ok"]), 1, (what, result))
                self.assertEqual(sum(line.startswith("shared memory: ranks of a machine see") for line in found["ok"]),
                                 ranks > 1, result)
                self.assertIn(f"placement: {ranks} on ", result.out)
                self.assertEqual(found["wrong"], [], result)

    def test_warnings(self):
        no_race = {"OMPI_MCA_fs_ufs_lock_algorithm": "3"}
        cases = {
            "threads": ({"ranks": 2, "env": {"OMP_NUM_THREADS": "64", "OMPI_MCA_mpi_yield_when_idle": "0"}},
                        r"rank 0 has 64 threads and may use \d+ core"),
            "cores": ({"ranks": 2, "env": {"OMP_NUM_THREADS": "64", "OMPI_MCA_mpi_yield_when_idle": "0"}},
                      r"128 threads on \d+ cores? of"),
            "slurm": ({"ranks": 2, "env": {"SLURM_NTASKS": "8"}}, r"the Slurm job has 8 tasks, this run has 2"),
            "shared memory": ({"ranks": 2, "env": {"STABLEMOE_FAULT": "window.touch@1"}},
                              r"shared memory: on rank 1 of 2: .*; every rank will have a copy"),
            "memory": ({"ranks": 2, "env": {"SLURM_MEM_PER_NODE": "900"}},
                       r"memory: 0.4\d GiB for each rank of .*, as the Slurm job \(--mem: 900 MiB\) allows"),
        }
        for name, (how, said) in cases.items():
            with self.subTest(name):
                env = {**no_race, **how.pop("env", {})}
                result = self.doctor(self.directory, env=env, **how)
                self.assertFine(result)
                self.assertTrue(any(re.search(said, line) for line in self.findings(result)["warning"]), result)

    def test_cores_of_another_run(self):
        """Two mpirun bind to the same first core: each run has half of it, and nothing else shows it."""
        if not shutil.which("taskset") or len(os.sched_getaffinity(0)) < 2:
            self.skipTest("no taskset, or one core")
        bound = "taskset -p -c 0 $$ >/dev/null"
        other = self.program.start("bench", self.program.config, "-n", 100000, before=bound)
        try:
            # It has its name once the shell before it is gone.
            name, deadline = "sh", time.monotonic() + p.TIME_LIMIT
            while name == "sh" and time.monotonic() < deadline:
                time.sleep(0.05)
                with open(f"/proc/{other.popen.pid}/comm") as file:
                    name = file.read().strip()
            result = self.doctor(self.directory, before=bound)
            free = self.doctor(self.directory)
        finally:
            other.end()
        self.assertFine(result)
        said = [line for line in self.findings(result)["warning"] if "is bound to the same cores as another" in line]
        self.assertEqual(len(said), 1, result)
        self.assertIn(f"(process {other.popen.pid})", said[0])
        self.assertNotIn("as another stablemoe", free.out)

    def test_slow_products(self):
        """A pin that keeps either library from the processor's vectors is found by measuring, and named."""
        env = {"DNNL_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Prescott", "OMPI_MCA_fs_ufs_lock_algorithm": "3"}
        result = self.doctor(self.directory, env=env)
        self.assertFine(result)
        if "core type Prescott" not in result.out or "compiled" in result.out:
            self.skipTest("another OpenBLAS, or no AVX2")
        found = self.findings(result)
        self.assertTrue(any(re.match(r"GEMM makes .* of the peak .*(DNNL_MAX_CPU_ISA=SSE41|OPENBLAS_CORETYPE=Prescott)",
                                     line) for line in found["warning"]), result)
        self.assertEqual([line for line in found["ok"] if line.startswith("GEMM")], [])

    def test_io_layer(self):
        for layer, env in (("OMPIO", {"OMPI_MCA_io": "ompio"}), ("ROMIO", {"OMPI_MCA_io": "romio321"})):
            with self.subTest(layer):
                result = self.doctor(self.directory, env=env)
                if "MPI            Open MPI v4" not in result.out:
                    self.skipTest("names of I/O layers are those of Open MPI 4")
                self.assertFine(result)
                self.assertIn(f"files are opened by {layer} of", result.out)

    def test_wrong(self):
        path = self.path("nothing")
        for ranks in (1, 2):
            with self.subTest(ranks=ranks):
                result = self.doctor(path, ranks=ranks)
                self.assertRefused(result, "io", "1 thing is wrong")
                self.assertRegex(self.findings(result)["wrong"][0], "cannot be reached: No such file")
        # As many processes that do not know of each other: an mpirun of another MPI.
        result = self.doctor(self.directory, env={"PMI_SIZE": "4"})
        self.assertRefused(result, "mpi", "1 thing is wrong")
        self.assertRegex(self.findings(result)["wrong"][0], "started 4 processes, but MPI sees 1 rank")

    def test_write_fails(self):
        """A file that cannot be made, or that reads back otherwise, on one rank."""
        for site in ("probe.create", "probe.verify"):
            with self.subTest(site):
                result = self.doctor(self.directory, ranks=2, env={"STABLEMOE_FAULT": f"{site}@1"})
                self.assertRefused(result, "io", "1 thing is wrong")
                self.assertIn(f"injected fault at {site}", self.findings(result)["wrong"][0])

    def test_arguments(self):
        self.assertRefused(self.program.run("doctor", "a", "b"), "config", "at most one DIRECTORY, and got 'b' too")


if __name__ == "__main__":
    p.main()
