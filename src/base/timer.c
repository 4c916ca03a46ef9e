#include "stablemoe/timer.h"

#include <stdio.h>
#include <sys/resource.h>
#include <time.h>

double smoe_seconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

double smoe_peak_memory(void) {
  struct rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) != 0) return 0;
  return 1024.0 * (double)usage.ru_maxrss;
}

double smoe_free_memory(void) {
  FILE *file = fopen("/proc/meminfo", "r");
  if (!file) return 0;
  char line[256];
  double kib = 0;
  while (fgets(line, sizeof line, file))
    if (sscanf(line, "MemAvailable: %lf", &kib) == 1) break;
  fclose(file);
  return 1024.0 * kib;
}
