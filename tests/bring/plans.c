/* Begins a trace by each of some plans, and says which of them it takes.
 *
 *     plans FOLDER PLAN... */
#include "firstdiff.h"

int main(int count, char **arguments)
{
    int at;
    for (at = 2; at < count; at++) {
        int32_t id = -1;
        size_t n = firstdiff_plan_step(arguments[at], 0, &id, 1);
        firstdiff_trace *fd = firstdiff_begin(arguments[1], arguments[at], "plans");
        int failed;
        firstdiff_step(fd, &id, 1);
        failed = firstdiff_end(fd);
        if (!failed && (n < 1 || id < 0))
            return 2;
        puts(failed ? "refused" : "taken");
    }
    return 0;
}
