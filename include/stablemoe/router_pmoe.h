/** What a model of images wants to know of pMoE's routing. */
#ifndef STABLEMOE_ROUTER_PMOE_H
#define STABLEMOE_ROUTER_PMOE_H

#include "stablemoe/config.h"

/** Patches that an expert takes of each image (l). Local. */
int smoe_pmoe_patches(const smoe_config *config);

/** Whether router.method is one of pMoE's. Local. */
bool smoe_pmoe_chosen(const smoe_config *config);

/** Whether the router learns apart from the experts, from single patches and the image's class. Local. */
bool smoe_pmoe_separate(const smoe_config *config);

#endif
