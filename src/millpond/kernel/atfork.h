/* The members of this process, for pthread_atfork: the one list that is global, since fork is. */
#ifndef MILLPOND_ATFORK_H
#define MILLPOND_ATFORK_H

#include "kernel.h"

int mp_atfork_add(mp_member *m); /* 0 or errno */
void mp_atfork_remove(mp_member *m);

#endif
