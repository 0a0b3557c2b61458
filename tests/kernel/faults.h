/* System calls that fail on order: call number nth of this process and its forks, once or from then on.
 *
 * Linked into a C test, or preloaded into a Python process, this stands between the program and the C library.
 */
#ifndef MILLPOND_FAULTS_H
#define MILLPOND_FAULTS_H

#include <stdbool.h>
#include <stdint.h>

#define FAULT_SHORT 0 /* instead of an errno: a transfer moves half of what it should */

void faults_arm(int error, uint64_t nth, bool for_ever);
/* How many calls have failed; sets *calls to how many there were. */
uint64_t faults_disarm(uint64_t *calls);
void faults_spare(bool on); /* this process: meanwhile no call of it fails, or counts */
/* From here on fallocate of more than so many bytes is interrupted, as by a timer. 0: no more. */
void faults_interrupt(uint64_t bytes);
/* Bytes mapped less bytes unmapped or reserved in their place for good; an unmapping that was told to fail counts. */
int64_t faults_mapped(void);

#endif
