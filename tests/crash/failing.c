/* A disk that fails: preloaded, it lets chosen writes and flushes of data.mdb fail.
 *
 *     cc -shared -fPIC -o failing.so failing.c -ldl
 *     FAILING="SKIP COUNT ERRNO AFTER" LD_PRELOAD=failing.so program
 *
 * Of the writes and flushes, SKIP succeed, then COUNT fail with ERRNO, the others succeed. With
 * AFTER 1 they fail after they were done, as when a device loses power in between. A program can
 * call failing_arm() with the same numbers at any time; it returns how many failed since then.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static int skip, count, number, after, failed;

int failing_arm(int its_skip, int its_count, int its_number, int its_after)
{
    int before = failed;
    skip = its_skip, count = its_count, number = its_number, after = its_after, failed = 0;
    return before;
}

__attribute__((constructor)) static void arm_from_environment(void)
{
    const char *text = getenv("FAILING");
    if (text)
        sscanf(text, "%d %d %d %d", &skip, &count, &number, &after);
}

/* Whether this call on the file is to fail. LMDB makes them one by one, under its write lock. */
static int fails(int file)
{
    char link[64], name[4096];
    if (!count)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, name, sizeof name);
    if (length < 8 || memcmp(name + length - 8, "data.mdb", 8))
        return 0;
    if (skip) {
        skip--;
        return 0;
    }
    count--;
    failed++;
    return 1;
}

#define INTERPOSE(type, name, declared, passed)                            \
    type name declared                                                     \
    {                                                                      \
        static type(*original) declared;                                   \
        if (!original)                                                     \
            original = (type(*) declared)dlsym(RTLD_NEXT, #name);          \
        int failing = fails(file);                                         \
        type result = failing && !after ? 0 : original passed;             \
        if (failing) {                                                     \
            errno = number;                                                \
            return -1;                                                     \
        }                                                                  \
        return result;                                                     \
    }

INTERPOSE(ssize_t, write, (int file, const void *data, size_t size), (file, data, size))
INTERPOSE(ssize_t, writev, (int file, const struct iovec *data, int n), (file, data, n))
INTERPOSE(ssize_t, pwrite,
          (int file, const void *data, size_t size, off_t at), (file, data, size, at))
INTERPOSE(ssize_t, pwrite64,
          (int file, const void *data, size_t size, off64_t at), (file, data, size, at))
INTERPOSE(ssize_t, pwritev,
          (int file, const struct iovec *data, int n, off_t at), (file, data, n, at))
INTERPOSE(int, fdatasync, (int file), (file))
INTERPOSE(int, fsync, (int file), (file))
