"""jobs/install.sh beside another apt: it waits, and says why a package is not there. Arguments: the source tree."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest

SCRIPT = os.path.join(sys.argv[1], "jobs", "install.sh")

# In the place of apt-get: a lock that is held for the first calls of a kind, and packages that there are not.
APT = r"""#!/bin/bash
echo "$*" >>"$FAKE/calls"
case " $* " in *" update "*) kind=update ;; *) kind=install ;; esac
n=$(($(cat "$FAKE/$kind" 2>/dev/null || echo 0) + 1))
echo $n >"$FAKE/$kind"
held=HELD_$kind
if [ $n -le "${!held:-0}" ]; then
  echo "E: Could not get lock /var/lib/$kind/lock. It is held by process 12 (apt-get)"
  echo "E: Unable to lock directory /var/lib/$kind/"
  exit 100
fi
[ $kind = install ] || exit 0
for word in "$@"; do
  case " $UNKNOWN " in
    *" $word "*) echo "E: Unable to locate package $word"; exit 100 ;;
  esac
done
[ -z "$BROKEN" ] || { echo "E: Failed to fetch http://mirror.invalid/x.deb  404"; exit 100; }
"""


# What the script itself calls, and what it looks for, whose work nobody needs here.
TOOLS = ("bash", "cat", "chmod", "env", "grep", "id", "mktemp", "rm", "sed", "sleep", "tail", "true")
THERE = ("meson", "ninja", "pkg-config", "mpirun", "cc", "c++", "clang", "python3", "clang-format", "groff", "chromium",
         "chromedriver", "slurmctld", "slurmd", "sinfo", "munged", "ip")


class Apt(unittest.TestCase):
    def install(self, *options, without="", wait=20, **env):
        """Run the script where the commands `without` are missing; returns its result and apt-get's calls."""
        with tempfile.TemporaryDirectory() as fake:
            bin = os.path.join(fake, "bin")
            os.mkdir(bin)
            for name in TOOLS:
                os.symlink(shutil.which(name), os.path.join(bin, name))
            programs = {name: "#!/bin/sh\ncat >/dev/null\n" for name in THERE if name not in without.split()}
            programs.update({"apt-get": APT, "sudo": '#!/bin/sh\n[ "$1" != -n ] || shift\nexec "$@"\n'})
            for name, text in programs.items():
                with open(os.path.join(bin, name), "w") as file:
                    file.write(text)
                os.chmod(os.path.join(bin, name), 0o755)
            # The script looks there for daemons' programs, too.
            with open(SCRIPT) as file:
                text = file.read().replace("PATH=$PATH:/usr/sbin:/sbin\n", "").replace("/usr/sbin/policy-rc.d", fake + "/p")
                text = text.replace("/usr/share/i18n/locales/de_DE", fake)
            path = os.path.join(fake, "install.sh")
            with open(path, "w") as file:
                file.write(text)
            done = subprocess.run(
                ["/bin/bash", path, *options], text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
                env={"PATH": bin, "HOME": fake, "FAKE": fake, "STABLEMOE_APT_WAIT": str(wait), "UNKNOWN": "", "BROKEN": "", "CC": "cc",
                     "CXX": "c++", **env})
            calls = []
            if os.path.exists(os.path.join(fake, "calls")):
                with open(os.path.join(fake, "calls")) as file:
                    calls = file.read().splitlines()
            return done, calls

    def test_waits_for_locks(self):
        """Of the package lists as of the archives; each call also lets apt-get wait for dpkg's."""
        done, calls = self.install("--test", without="clang-format", HELD_update="2", HELD_install="1")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertIn("another apt is at work; waiting for it for at most 20 s", done.stdout)
        self.assertNotIn("not installed", done.stdout)
        self.assertEqual(sum(" update" in call for call in calls), 3, calls)
        self.assertEqual(sum(" clang-format" in call for call in calls), 2, calls)
        for call in calls:
            self.assertIn("DPkg::Lock::Timeout=20", call)

    def test_a_lock_is_no_missing_package(self):
        done, _ = self.install("--test", without="clang-format", wait=1, HELD_install="99")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertRegex(done.stdout, "(?m)^install: not installed: .*clang-format.*: another apt held its lock for 1 s")
        self.assertNotIn("package lists", done.stdout)

    def test_a_missing_package_is_no_lock(self):
        done, _ = self.install("--test", without="clang-format groff", UNKNOWN="clang-format")
        self.assertEqual(done.returncode, 0, done.stdout)
        self.assertRegex(done.stdout, "(?m)^install: not installed: clang-format: not in this system's package lists: "
                                      "clang-format; tests that need it are skipped$")
        self.assertNotIn("lock", done.stdout)
        self.assertNotIn("not installed: groff", done.stdout)

    def test_anything_else_is_shown(self):
        done, _ = self.install("--test", without="clang-format", BROKEN="1")
        self.assertIn("clang-format: Failed to fetch http://mirror.invalid/x.deb", done.stdout)

    def test_required(self):
        """The same for what the build needs, and that is an error."""
        for how, said in (({"HELD_update": "99"}, "another apt held its lock for 1 s"),
                          ({"HELD_install": "99"}, "another apt held its lock for 1 s"),
                          ({"UNKNOWN": "ninja-build"}, "not in this system's package lists: ninja-build")):
            with self.subTest(said, **how):
                done, _ = self.install(without="ninja", wait=1, **how)
                self.assertEqual(done.returncode, 2, done.stdout)
                self.assertRegex(done.stdout, f"(?m)^install: apt-get could not install: .*ninja-build.*: {said}")

    def test_nothing_missing_needs_no_apt(self):
        done, calls = self.install()
        self.assertEqual((done.returncode, done.stdout, calls), (0, "install: everything is there\n", []))


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
