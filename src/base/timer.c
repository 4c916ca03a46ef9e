#include "stablemoe/timer.h"

#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

static double seconds_of(clockid_t clock) {
  struct timespec now;
  clock_gettime(clock, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double smoe_seconds(void) {
  return seconds_of(CLOCK_MONOTONIC);
}

double smoe_processor_seconds(void) {
  return seconds_of(CLOCK_PROCESS_CPUTIME_ID);
}

double smoe_peak_memory(void) {
  struct rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return 1024.0 * (double)usage.ru_maxrss;
}

/* Bytes that a line of a file in /proc gives in KiB; 0 where there is none. */
static double bytes_of_line(const char *path, const char *format) {
  FILE *file = fopen(path, "r");
  if (!file) return 0;
  char line[256];
  double kib = 0;
  while (fgets(line, sizeof line, file))
    if (sscanf(line, format, &kib) == 1) break;
  fclose(file);
  return 1024.0 * kib;
}

double smoe_resident_memory(void) {
  return bytes_of_line("/proc/self/status", "VmRSS: %lf");
}
