#!/usr/bin/env python3
"""Every fault site of the sources fails once, on the first and on the last of so many ranks.

    test_fault.py --program stablemoe --ranks 4

The sites are read from src/, so that a new one is tried without a word here. Each is met by a
run that resumes from a checkpoint, trains and saves another: it must end in time with the right
exit code and one report, leave what was there sound, and the run must go on from it.
"""

import glob
import os
import re
import shutil
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "e2e"))
import program as p  # noqa: E402

TIME_LIMIT = 90

# Sites that training does not pass, but `stablemoe prepare`.
PREPARE = {"corpus.write"}

# Sites of the file by which `stablemoe doctor` tries a directory.
DOCTOR = "probe."

# Sites where a node does not give shared memory: a run does without.
WINDOW = "window."

# Sites that only rank 0 passes: on another rank the run must not be touched.
ONLY_RANK_0 = {"run.directory"} | PREPARE

# Later passes: the backward of a step, another update, the second of two files.
LATER = ["exchange.transfer@{last}#7", "exchange.plan@{last}#3", "corpus.read@{last}#12", "arena.reserve@{last}#3"]


MAKES = r'smoe_part_(?:create|make)\([^"();]*"(\w+)"'


def sites(source):
    """Names of all fault sites; those of a part file are named after what the file is."""
    texts = {}
    for path in glob.glob(os.path.join(source, "src", "**", "*.c*"), recursive=True):
        with open(path) as file:
            texts[path] = file.read()
    found, kinds = set(), set()
    for path, text in texts.items():
        # smoe_part_create(part, group, "checkpoint", ..., or smoe_part_make
        kinds.update(re.findall(MAKES, text))
    for path, text in texts.items():
        found.update(re.findall(r'smoe_fault\("([^"]+)"\)', text))
        # Where a file makes part files its places are of their kind, else of every kind.
        own = set(re.findall(MAKES, text)) or kinds
        found.update(f"{kind}.{place}" for place in re.findall(r'smoe_part_fault\([^",()]*,\s*"(\w+)"\)', text)
                     for kind in own)
        # Any other call has a name that this cannot read: only the one that joins kind and place is known.
        other = re.findall(r"smoe_(?:part_)?fault\((?!\")[^\"\n]*\)", text)
        known = {"smoe_fault(const char *site)", "smoe_fault(site)",
                 "smoe_part_fault(const smoe_part_file *part, const char *place)"}
        assert set(other) <= known, f"{path} has a fault site without a plain name: {set(other) - known}"
    return sorted(found)


class Fault(p.ProgramTest):
    settings = ("train.updates=4", "router.stage1_updates=3", "train.checkpoint_every=2", "train.evaluate_every=2",
                "schedule.kind=constant", "schedule.warmup=1", "train.keep_last=0")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.trained("base", ["train.updates=2"])
        cls.copy("base", "whole")
        cls.trained("whole", resume="start-or-resume")

    def resume_with(self, wish, run, base="base"):
        self.copy(base, run)
        return self.train(run, ranks=self.ranks, resume="start-or-resume", env={"STABLEMOE_FAULT": wish}, timeout=TIME_LIMIT)

    def check_left(self, run, base="base"):
        """What was there before is there as it was; what is new is sound; nothing is half made."""
        self.assertEqual(p.part_files(run), [])
        for folder in ("checkpoints", "routing"):
            self.assertLessEqual(set(p.files_of(self.path(base), folder)), set(p.files_of(run, folder)))
            for name in p.files_of(run, folder):
                old, new = (os.path.join(where, folder, name) for where in (self.path(base), run))
                if os.path.exists(old):
                    with open(old, "rb") as one, open(new, "rb") as other:
                        self.assertTrue(one.read() == other.read(), f"{new} was changed")
                else:
                    more = ["--verify"] if folder == "checkpoints" else []
                    self.assertFine(self.program.run("info", new, *more))
        self.assertIn(os.readlink(os.path.join(run, "checkpoints", "latest")), p.files_of(run, "checkpoints"))

    def check_goes_on(self, name):
        """Without the fault the run goes on to what a run without any fault makes."""
        self.assertFine(self.train(name, resume=True))
        self.assertSameRun(self.path(name), self.path("whole"), [4])

    def check_failed(self, wish, name, result):
        site, rank = wish.partition("#")[0].split("@")
        self.assertIsNotNone(result.code, f"no end within {TIME_LIMIT} s: {result}")
        self.assertNotEqual(result.code, 0, f"the run does not pass the site {site} on rank {rank}: {result}")
        self.assertEqual(len(result.reports), 1, result)
        kind = p.found(r"^stablemoe: error \((\w+)\) ", result.reports[0])[1]
        self.assertRefused(result, kind, rf"on rank {rank} of {self.ranks}: .*injected fault")
        self.check_left(self.path(name))
        if rank != "0":
            self.check_goes_on(name)

    def test_sites(self):
        found = sites(self.program.source)
        # Far fewer would mean that the sources are no longer read as they should be.
        self.assertGreaterEqual(len(found), 20, found)
        wishes = [f"{site}@{rank}" for site in found for rank in (0, self.ranks - 1)]
        wishes += [wish.format(last=self.ranks - 1) for wish in LATER]
        wishes = [wish for wish in wishes if wish.split("@")[0] not in PREPARE and not wish.startswith((DOCTOR, WINDOW))]
        names = {wish: f"fault-{i}" for i, wish in enumerate(wishes)}
        jobs = {wish: lambda w=wish: self.resume_with(w, names[w]) for wish in wishes}
        for wish, result in p.several(jobs):
            site, rank = wish.partition("#")[0].split("@")
            with self.subTest(wish, ranks=self.ranks):
                if site in ONLY_RANK_0 and rank != "0":
                    self.assertFine(result)
                    self.assertSameRun(self.path(names[wish]), self.path("whole"), [4])
                else:
                    self.check_failed(wish, names[wish], result)
            shutil.rmtree(self.path(names[wish]))

    def test_prepare(self):
        """A corpus that cannot be written leaves no file, and the one that was there as it was."""
        with open(self.corpus, "rb") as file:
            before = file.read()
        for site in sorted(PREPARE & set(sites(self.program.source))):
            for rank in (0, self.ranks - 1):
                for output, old in ((self.path("new.h5"), None), (self.corpus, before)):
                    with self.subTest(site, ranks=self.ranks, rank=rank, output=output):
                        result = self.program.run("prepare", self.path("text.txt"), "-o", output, "--vocab", 300,
                                                  ranks=self.ranks, env={"STABLEMOE_FAULT": f"{site}@{rank}"})
                        if rank > 0:
                            self.assertFine(result)
                            continue
                        self.assertRefused(result, "io", rf"on rank 0 of {self.ranks}: .*injected fault")
                        self.check_corpus(output, old)

    def test_doctor(self):
        """A directory that a file cannot be made in is said to be wrong, with the reason, and nothing is left in it."""
        found = [site for site in sites(self.program.source) if site.startswith(DOCTOR)]
        self.assertGreaterEqual(len(found), 5, found)
        directory = self.path("doctor")
        os.mkdir(directory)
        for site in found:
            for rank in (0, self.ranks - 1):
                with self.subTest(site, ranks=self.ranks, rank=rank):
                    result = self.program.run("doctor", directory, ranks=self.ranks, timeout=TIME_LIMIT,
                                              env={"STABLEMOE_FAULT": f"{site}@{rank}"})
                    self.assertRefused(result, "io", "wrong here")
                    self.assertRegex(result.out + result.err,
                                     rf"(?m)^wrong +writing: .*on rank {rank} of {self.ranks}: injected fault at {site}")
                    self.assertEqual(os.listdir(directory), [])

    def check_corpus(self, output, old):
        name = os.path.basename(output)
        self.assertEqual([n for n in os.listdir(self.directory) if n.startswith(name)], [name] if old else [])
        if old:
            with open(output, "rb") as file:
                self.assertTrue(file.read() == old, f"{output} was changed")

    def test_no_shared_memory(self):
        """A rank cannot have memory that the ranks of its node share: every rank takes a copy, aloud, with the same bits."""
        found = [site for site in sites(self.program.source) if site.startswith(WINDOW)]
        self.assertEqual(found, ["window.create", "window.touch"])
        for site in found:
            for rank in (0, self.ranks - 1):
                with self.subTest(site, ranks=self.ranks, rank=rank):
                    result = self.resume_with(f"{site}@{rank}", "alone")
                    self.assertFine(result)
                    self.assertRegex(result.err, rf"on rank {rank} of {self.ranks}: injected fault at {site}.*; until then "
                                                 "every rank has a copy of the shared parameters")
                    self.assertNotIn("once for the ranks of each", result.err)
                    self.assertSameRun(self.path("alone"), self.path("whole"), [2, 4])
                    shutil.rmtree(self.path("alone"))

    def test_unreadable_newest_checkpoint(self):
        """A checkpoint that one rank cannot read is passed over, aloud, for the one before."""
        for site in ("checkpoint.load", "checkpoint.read"):
            with self.subTest(site):
                result = self.resume_with(f"{site}@{self.ranks - 1}", f"newest-{site}", base="whole")
                self.assertFine(result)
                self.assertRegex(result.err, "injected fault at .*falling back to the checkpoint before")
                self.assertRegex(result.err, "resumed from '.*step-000000002.h5'")
                self.assertSameRun(self.path(f"newest-{site}"), self.path("whole"), [2, 4])


if __name__ == "__main__":
    p.main()
