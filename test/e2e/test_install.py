#!/usr/bin/env python3
"""What `meson install` puts where: program, library, headers, man page, completions."""

import glob
import os
import re
import shutil
import subprocess
import tempfile
import unittest

import program as p

USER = r"""
#include <stablemoe/config.h>
#include <stablemoe/group.h>
#include <stablemoe/h5.h>
#include <stablemoe/family.h>
#include <stablemoe/router.h>
#include <stdio.h>

int main(int argc, char **argv) {
  smoe_group group;
  smoe_group_start(&group, &argc, &argv);
  const smoe_keyset *sets[64];
  smoe_config *config = smoe_config_create(sets, smoe_model_keysets(sets));
  smoe_status status = smoe_config_override(config, "moe.experts=12");
  printf("%s %d ranks %lld experts, %s\n", smoe_router_methods[0]->name, group.n_ranks,
         (long long)smoe_config_settings(config)->moe.experts,
         smoe_router_find("nothing") ? "?" : smoe_status_name(status));
  smoe_config_destroy(config);
  smoe_group_end(&group);
  return status;
}
"""

# What bash does when TAB is pressed: words of the line, the last one unfinished.
COMPLETE = r"""
source "$1"
shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_stablemoe
printf '%s\n' "${COMPREPLY[@]}"
"""


def run(*command, **how):
    return subprocess.run(command, capture_output=True, text=True, timeout=p.TIME_LIMIT, check=False, **how)


class Install(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.program = p.ProgramTest.program
        build = os.path.dirname(os.path.dirname(os.path.dirname(cls.program.path)))
        if not shutil.which("meson") or not os.path.exists(os.path.join(build, "meson-private")):
            raise unittest.SkipTest("needs meson and the build that the program is of")
        directory = tempfile.TemporaryDirectory(prefix="stablemoe-install-")
        cls.addClassCleanup(directory.cleanup)
        cls.directory = directory.name
        done = run("meson", "install", "--no-rebuild", "-C", build, env=dict(os.environ, DESTDIR=cls.directory))
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr
        options = run("meson", "introspect", "--buildoptions", build).stdout
        cls.prefix = cls.directory + p.found(r'"name": "prefix", "value": "([^"]*)"', options)[1]
        cls.library = os.path.dirname(cls.one("lib*/**/libstablemoe.so"))

    @classmethod
    def one(cls, pattern):
        """The one installed file of that name."""
        found = glob.glob(os.path.join(cls.prefix, pattern), recursive=True)
        assert len(found) == 1, (pattern, found)
        return found[0]

    def test_program(self):
        program = p.Program(self.one("bin/stablemoe"), self.program.mpirun, self.program.config, self.program.source)
        said = program.run("--version")
        self.assertEqual((said.code, said.out), (0, self.program.run("--version").out), said)
        loaded = run("ldd", program.path).stdout
        self.assertNotIn("not found", loaded)
        self.assertNotIn(os.path.dirname(self.program.path), loaded, "of the build directory")
        for name in ("configs/stable.yml", "analysis/__main__.py"):
            self.one(f"share/stablemoe/{name}")
        self.one("share/doc/stablemoe/architecture.md")
        self.assertEqual(glob.glob(os.path.join(self.prefix, "**", "__pycache__"), recursive=True), [])

    def test_library(self):
        """A program of somebody else's, with nothing but what pkg-config says."""
        if not shutil.which("pkg-config") or not shutil.which("cc"):
            self.skipTest("pkg-config or cc is missing; jobs/install.sh brings them")
        source, made = os.path.join(self.directory, "user.c"), os.path.join(self.directory, "user")
        with open(source, "w") as file:
            file.write(USER)
        # The prefix is the one that was configured; only here it is below another directory.
        with open(self.one("lib*/**/stablemoe.pc")) as file:
            package = file.read().replace(f"prefix={self.prefix[len(self.directory):]}\n", f"prefix={self.prefix}\n")
        with open(os.path.join(self.directory, "stablemoe.pc"), "w") as file:
            file.write(package)
        path = os.pathsep.join(filter(None, [self.directory, os.environ.get("PKG_CONFIG_PATH")]))
        flags = run("pkg-config", "--cflags", "--libs", "stablemoe", env=dict(os.environ, PKG_CONFIG_PATH=path))
        self.assertEqual(flags.returncode, 0, flags.stderr)
        sanitizers = p.found(r"sanitizers +(\S+)", self.program.run("--version").out)[1]
        more = [] if sanitizers == "none" else [f"-fsanitize={sanitizers}"]
        built = run("cc", "-std=c11", "-Wall", "-Wextra", "-Werror", *more, source, "-o", made, *flags.stdout.split())
        self.assertEqual(built.returncode, 0, built.stderr)
        env = dict(p.environment(), LD_LIBRARY_PATH=os.pathsep.join(
            filter(None, [self.library, os.environ.get("LD_LIBRARY_PATH")])), ASAN_OPTIONS="detect_leaks=0")
        done = run(self.program.mpirun, "--bind-to", "none", "-n", "2", made, env=env)
        self.assertEqual((done.returncode, done.stdout), (0, "stable 2 ranks 12 experts, ok\n" * 2), done.stderr)

    def test_man_page(self):
        page = self.one("share/man/man1/stablemoe.1")
        with open(page) as file:
            text = file.read()
        for word in (r"\-\-dry\-run", "router.replay.log", "OMP_NUM_THREADS", r"stablemoe doctor"):
            self.assertIn(word, text)
        if not shutil.which("groff"):
            self.skipTest("groff is missing, which finds warnings in the man page; jobs/install.sh --test brings it")
        done = run("groff", "-man", "-ww", "-z", "-Tutf8", "-Kutf8", page)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def complete(self, *words, cwd=None):
        script = self.one("share/bash-completion/completions/stablemoe.bash")
        done = run("bash", "-c", COMPLETE, "bash", script, *words, cwd=cwd)
        self.assertEqual((done.returncode, done.stderr), (0, ""), words)
        return done.stdout.split()

    def test_bash_completion(self):
        listed = re.findall(r"stablemoe ([a-z]+) ", self.program.run("--help").out)
        commands = self.complete("stablemoe", "")
        self.assertGreaterEqual(set(commands), {*listed, "man", "--help", "--version"} - {"train "})
        self.assertEqual(self.complete("stablemoe", "trai"), ["train"])
        self.assertIn("--dry-run", self.complete("stablemoe", "train", "--"))
        self.assertEqual(self.complete("stablemoe", "train", "--res"), ["--resume"])
        self.assertEqual(self.complete("stablemoe", "train", "-P", "model.con"), ["model.context="])
        self.assertEqual(self.complete("stablemoe", "bench", "--set", "train.lan"), ["train.lanes="])
        # bash cuts KEY=VALUE into three words.
        self.assertEqual(self.complete("stablemoe", "train", "-P", "moe.position", "=", "t"), ["top"])
        self.assertEqual(self.complete("stablemoe", "train", "-P", "moe.identical_experts", "="), ["true", "false"])
        self.assertIn("expert_choice", self.complete("stablemoe", "train", "-P", "router.method", "=", "ex"))
        self.assertEqual(self.complete("stablemoe", "prepare", "--tokenizer", ""), ["bpe", "unigram"])
        self.assertEqual(self.complete("stablemoe", "prepare", "--vocab", ""), [])
        self.assertEqual(self.complete("stablemoe", "completion", ""), ["bash", "zsh", "fish"])
        root = self.program.source
        self.assertEqual(self.complete("stablemoe", "train", "configs/paper-b", cwd=root), ["configs/paper-base.yml"])
        self.assertEqual(self.complete("stablemoe", "doctor", "conf", cwd=root), ["configs"])
        self.assertEqual(self.complete("stablemoe", "train", "-P", "data.corpus", "=", "READ", cwd=root), ["README.md"])

    def test_other_shells(self):
        for shell, name in (("zsh", "zsh/site-functions/_stablemoe"), ("fish", "fish/vendor_completions.d/stablemoe.fish")):
            with self.subTest(shell):
                path = self.one(f"share/{name}")
                with open(path) as file:
                    text = file.read()
                for word in ("overwrite", "model.context", "replay"):
                    self.assertIn(word, text)
                if shutil.which(shell):
                    done = run(shell, "-n", path)
                    self.assertEqual((done.returncode, done.stderr), (0, ""))


if __name__ == "__main__":
    p.main()
