/** Wall-clock time. */
#ifndef STABLEMOE_TIMER_H
#define STABLEMOE_TIMER_H

/** Seconds of a clock that never goes back; only differences mean something. Local. */
double smoe_seconds(void);

/** Seconds that processors spent on this process, all its threads together; waiting for a core does not count. Local. */
double smoe_processor_seconds(void);

/** Bytes of physical memory this process has used at most so far. Local. */
double smoe_peak_memory(void);

/** Bytes of physical memory this process uses now; 0 where the system does not say. Local. */
double smoe_resident_memory(void);

#endif
