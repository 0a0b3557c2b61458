/* pthread_atfork for all members of this process.
 *
 * Invariant: the list's mutex is held over the fork, before any mutex of a member, so that
 * nobody joins or leaves half-way. A process has few members; the list is an array.
 */
#include "atfork.h"

#include <errno.h>
#include <stdlib.h>

static pthread_mutex_t list_mutex = PTHREAD_MUTEX_INITIALIZER;
static mp_member **members;
static size_t count, capacity;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static int once_error;

static void prepare(void) {
    pthread_mutex_lock(&list_mutex);
    for (size_t i = 0; i < count; i++) mp_fork_prepare(members[i]);
}

static void parent(void) {
    for (size_t i = count; i > 0; i--) mp_fork_parent(members[i - 1]);
    pthread_mutex_unlock(&list_mutex);
}

static void child(void) {
    for (size_t i = 0; i < count; i++) mp_fork_child(members[i]);
    pthread_mutex_init(&list_mutex, NULL);
}

static void install(void) { once_error = pthread_atfork(prepare, parent, child); }

int mp_atfork_add(mp_member *m) {
    pthread_once(&once, install);
    if (once_error) return once_error;
    pthread_mutex_lock(&list_mutex);
    int error = 0;
    if (count == capacity) {
        size_t more = capacity ? 2 * capacity : 8;
        mp_member **grown = realloc(members, more * sizeof *grown);
        if (grown) {
            members = grown;
            capacity = more;
        } else
            error = ENOMEM;
    }
    if (!error) {
        members[count++] = m;
        mp_fork_ready(m);
    }
    pthread_mutex_unlock(&list_mutex);
    return error;
}

void mp_atfork_remove(mp_member *m) {
    pthread_mutex_lock(&list_mutex);
    for (size_t i = 0; i < count; i++)
        if (members[i] == m) {
            members[i] = members[--count];
            break;
        }
    pthread_mutex_unlock(&list_mutex);
}
