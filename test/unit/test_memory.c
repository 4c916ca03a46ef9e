/* Limits of memory, in made-up /proc and /sys: cgroups of both versions, containers, Slurm. */
#include "stablemoe/memory.h"

#include <sys/stat.h>

#include "harness.h"
#include "stablemoe/arena.h"
#include "temporary.h"

static const double MIB = 1 << 20;
static const char *root;

/* A file below the root, with its directories. */
static void put(const char *path, const char *text) {
  char *full = smoe_sprintf("%s%s", root, path);
  for (char *slash = full + strlen(root) + 1; (slash = strchr(slash, '/')); slash++) {
    *slash = '\0';
    mkdir(full, 0700);
    *slash = '/';
  }
  FILE *file = fopen(full, "w");
  CHECK(file && fputs(text, file) >= 0, "%s", full);
  fclose(file);
  smoe_free(full);
}

static void put_mib(const char *path, double mib) {
  char text[64];
  snprintf(text, sizeof text, "%.0f\n", mib * MIB);
  put(path, text);
}

/* A machine with 8 GiB available, and this process in a cgroup. */
static void begin(const char *name, const char *cgroup, const char *mountinfo) {
  root = test_path(name);
  mkdir(root, 0700);
  put("/proc/meminfo", "MemTotal:       16777216 kB\nMemFree:        1 kB\nMemAvailable:    8388608 kB\n");
  put("/proc/self/cgroup", cgroup);
  put("/proc/self/mountinfo", mountinfo);
}

static void expect(double mib, const char *limit) {
  const smoe_memory memory = smoe_memory_free_below(root);
  CHECK(memory.bytes == mib * MIB, "%.3f MiB of %s, not %.3f", memory.bytes / MIB, memory.limit, mib);
  CHECK(strcmp(memory.limit, limit) == 0, "'%s', not '%s'", memory.limit, limit);
}

static const char MACHINE[] = "the free memory of this machine";
static const char HYBRID[] =
    "22 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
    "31 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
    "34 30 0:31 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n"
    "40 30 0:37 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

static void test_version_1(void) {
  begin("one", "11:cpu,cpuacct:/elsewhere\n4:memory:/slurm/job_7/step_0\n0::/init\n", HYBRID);
  expect(8192, MACHINE);
  put("/sys/fs/cgroup/memory/slurm/job_7/step_0/memory.limit_in_bytes", "9223372036854771712\n"); /* none */
  put_mib("/sys/fs/cgroup/memory/slurm/job_7/step_0/memory.usage_in_bytes", 100);
  put_mib("/sys/fs/cgroup/memory/memory.limit_in_bytes", 1 << 20);
  put_mib("/sys/fs/cgroup/memory/memory.usage_in_bytes", 5000);
  expect(8192, MACHINE);
  /* The step has no limit of its own, its job has. */
  put_mib("/sys/fs/cgroup/memory/slurm/job_7/memory.limit_in_bytes", 1024);
  put_mib("/sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes", 300);
  expect(724, "the cgroup '/slurm/job_7' (limit 1024 MiB)");
  /* Files in the page cache give way. */
  put("/sys/fs/cgroup/memory/slurm/job_7/memory.stat",
      "cache 1\ninactive_file 7\ntotal_inactive_file 104857600\ntotal_active_file 52428800\n");
  expect(724 + 150, "the cgroup '/slurm/job_7' (limit 1024 MiB)");
  put_mib("/sys/fs/cgroup/memory/slurm/job_7/memory.usage_in_bytes", 2000);
  const smoe_memory nothing = smoe_memory_free_below(root);
  CHECK(nothing.bytes == 1, "a limit that is used up is not an unknown one: %g", nothing.bytes);
}

static void test_version_2(void) {
  begin("two", "0::/system.slice/job.scope\n",
        "29 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n");
  expect(8192, MACHINE);
  put("/sys/fs/cgroup/system.slice/job.scope/memory.max", "max\n");
  put_mib("/sys/fs/cgroup/system.slice/job.scope/memory.current", 10);
  put("/sys/fs/cgroup/system.slice/memory.max", "max\n");
  put_mib("/sys/fs/cgroup/system.slice/memory.current", 600);
  expect(8192, MACHINE);
  put_mib("/sys/fs/cgroup/system.slice/memory.max", 4000);
  expect(3400, "the cgroup '/system.slice' (limit 4000 MiB)");
  put_mib("/sys/fs/cgroup/system.slice/job.scope/memory.high", 1000);
  put("/sys/fs/cgroup/system.slice/job.scope/memory.stat", "anon 5\nfile 9\ninactive_file 1048576\n");
  expect(991, "the cgroup '/system.slice/job.scope' (limit 1000 MiB)");
}

static void test_containers(void) {
  /* The path outside is not to be seen inside: the mount is the container's own. */
  begin("docker", "5:memory:/docker/abc/in\n",
        "34 30 0:31 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n");
  put_mib("/sys/fs/cgroup/memory/memory.limit_in_bytes", 512);
  put_mib("/sys/fs/cgroup/memory/memory.usage_in_bytes", 12);
  put_mib("/sys/fs/cgroup/memory/in/memory.limit_in_bytes", 400);
  put_mib("/sys/fs/cgroup/memory/in/memory.usage_in_bytes", 12);
  expect(388, "the cgroup '/in' (limit 400 MiB)");
  put("/proc/self/cgroup", "5:memory:/docker/abcd\n");
  expect(500, "the cgroup '/' (limit 512 MiB)");
  put("/proc/self/cgroup", "5:memory:/../other\n");
  expect(500, "the cgroup '/' (limit 512 MiB)");
  put("/proc/self/cgroup", "5:name=memory:/docker/abc\n");
  expect(8192, MACHINE);
}

static void test_slurm(void) {
  begin("slurm", "", "");
  setenv("SLURM_MEM_PER_NODE", "2048", 1);
  smoe_memory memory = smoe_memory_free_below(root);
  CHECK(memory.bytes < 2048 * MIB && memory.bytes > 1024 * MIB, "%.1f", memory.bytes / MIB);
  CHECK(strcmp(memory.limit, "the Slurm job (--mem: 2048 MiB)") == 0, "%s", memory.limit);
  setenv("SLURM_MEM_PER_NODE", "0", 1); /* all there is */
  setenv("SLURM_MEM_PER_CPU", "1000", 1);
  expect(8192, MACHINE);
  setenv("SLURM_CPUS_ON_NODE", "4", 1);
  memory = smoe_memory_free_below(root);
  CHECK(memory.bytes < 4000 * MIB && memory.bytes > 3000 * MIB, "%.1f", memory.bytes / MIB);
  CHECK(strcmp(memory.limit, "the Slurm job (--mem-per-cpu, for all CPUs of it here: 4000 MiB)") == 0, "%s",
        memory.limit);
  unsetenv("SLURM_MEM_PER_NODE");
  unsetenv("SLURM_MEM_PER_CPU");
  unsetenv("SLURM_CPUS_ON_NODE");
}

static void test_unknown(void) {
  root = test_path("nothing");
  CHECK(smoe_memory_free_below(root).bytes == 0);
  root = "";
  const smoe_memory memory = smoe_memory_free();
  CHECK(memory.bytes > 0, "of this machine: %g", memory.bytes);
}

int main(void) {
  test_directory_make();
  unsetenv("SLURM_MEM_PER_NODE");
  unsetenv("SLURM_MEM_PER_CPU");
  test_version_1();
  test_version_2();
  test_containers();
  test_slurm();
  test_unknown();
  return test_verdict("test_memory");
}
