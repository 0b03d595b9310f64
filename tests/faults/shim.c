/* LD_PRELOAD: a slow disk and a false clock, for every program that we did not write as well.
 *
 * $FAULTS_SLOW and $FAULTS_CLOCK each name a file that holds a number in text: the milliseconds that
 * a commit takes longer, and the seconds by which the clock on the wall is off.  The files are
 * mapped, so a change holds at once and everywhere.  The monotonic clock is left alone.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const char *slow, *false_clock;

static const char *mapped(const char *name)
{
    const char *file = getenv(name);
    int descriptor = file ? open(file, O_RDONLY | O_CLOEXEC) : -1;
    void *found;
    if (descriptor < 0)
        return NULL;
    found = mmap(NULL, 16, PROT_READ, MAP_SHARED, descriptor, 0);
    close(descriptor);
    return found == MAP_FAILED ? NULL : found;
}

__attribute__((constructor)) static void begin(void)
{
    slow = mapped("FAULTS_SLOW");
    false_clock = mapped("FAULTS_CLOCK");
}

static long offset(void)
{
    return false_clock ? strtol(false_clock, NULL, 10) : 0;
}

static void wait_for_disk(void)
{
    long milliseconds = slow ? strtol(slow, NULL, 10) : 0;
    if (milliseconds > 0)
        usleep((useconds_t)milliseconds * 1000);
}

int fsync(int descriptor)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    wait_for_disk();
    return real(descriptor);
}

int fdatasync(int descriptor)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    wait_for_disk();
    return real(descriptor);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    static int (*real)(clockid_t, struct timespec *);
    int result;
    if (real == NULL)
        real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    result = real(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += offset();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    static int (*real)(struct timeval *, void *);
    int result;
    if (real == NULL)
        real = (int (*)(struct timeval *, void *))dlsym(RTLD_NEXT, "gettimeofday");
    result = real(now, zone);
    if (result == 0)
        now->tv_sec += offset();
    return result;
}

time_t time(time_t *now)
{
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now != NULL)
        *now = found.tv_sec;
    return found.tv_sec;
}
