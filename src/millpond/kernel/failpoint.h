/* Named places where a test kills, stops or delays a member. Compiled in only with
 * MP_FAILPOINTS; otherwise nothing is left of them. */
#ifndef MILLPOND_FAILPOINT_H
#define MILLPOND_FAILPOINT_H

#ifdef MP_FAILPOINTS
void mp_failpoint_reach(const char *name);
#define MP_FAILPOINT(name) mp_failpoint_reach(name)
#else
#define MP_FAILPOINT(name) ((void)0)
#endif

#endif
