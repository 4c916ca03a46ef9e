/** The subcommands of the program. Each prints its own --help. */
#ifndef STABLEMOE_APP_H
#define STABLEMOE_APP_H

#include "stablemoe/config.h"
#include "stablemoe/group.h"

/** argv[0] is the subcommand's name. Statuses are agreed on all ranks of group. */
smoe_status smoe_app_prepare(int argc, char **argv);
smoe_status smoe_app_train(const smoe_group *group, int argc, char **argv);
smoe_status smoe_app_evaluate(const smoe_group *group, int argc, char **argv);
smoe_status smoe_app_generate(const smoe_group *group, int argc, char **argv);
smoe_status smoe_app_bench(const smoe_group *group, int argc, char **argv);
smoe_status smoe_app_info(const smoe_group *group, int argc, char **argv);

/** A configuration with the keys of the trainer and of every routing method; local. */
smoe_config *smoe_app_config(void);

/** Resolve and check a configuration against its routing method, and set up threads. Local. */
smoe_status smoe_app_config_finish(smoe_config *config);

/** The integer that a command-line option was given. Local. Errors: SMOE_ERR_CONFIG naming option and range. */
smoe_status smoe_app_integer(const char *option, const char *text, int64_t min, int64_t max, int64_t *value);

/** The number that a command-line option was given. Local. */
smoe_status smoe_app_real(const char *option, const char *text, double min, double max, double *value);

#endif
