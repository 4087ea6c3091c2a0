/*
 * The benchmark without any Python: each row beside its limit.
 *
 *   main [--rounds N] [ROW...]      medians over N rounds (default 25) of these rows, or of all
 *   main --once prepare|run ROW     the preparation of a row, with or without one round: for counting instructions
 *
 * cc -O3 -std=c11 -Iinclude bench/main.c bench/rows.c csrc/[a-z]*.c csrc/hosted/[a-z]*.c -o main
 */
#define _POSIX_C_SOURCE 200809L /* clock_gettime() */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rows.h"

#define MOST_ROUNDS 1000

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e9 + (double)t.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
    const double x = *(const double *)a, y = *(const double *)b;

    return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof(*values), by_size);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

static bool is_asked(const struct bench_row *row, char **names, int count)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(names[i], row->name))
            return true;
    return !count;
}

static bool measure(const struct bench_row *row, size_t rounds)
{
    double ran[MOST_ROUNDS], limit[MOST_ROUNDS], ratio[MOST_ROUNDS], most;
    struct bench *b = bench_open(row, true);
    uint64_t items = 0;

    if (!b) {
        fprintf(stderr, "%s: not enough memory\n", row->name);
        return false;
    }
    bench_prepare(b);
    items = bench_run(b);
    for (size_t i = 0; i < rounds && items; i++) {
        double start;

        bench_prepare(b);
        start = now();
        bench_bare(b);
        limit[i] = now() - start;
        bench_prepare(b);
        start = now();
        if (bench_run(b) != items)
            items = 0;
        ran[i] = now() - start;
        ratio[i] = ran[i] / limit[i];
    }
    bench_close(b);
    if (!items) {
        fprintf(stderr, "%s: did not do its work\n", row->name);
        return false;
    }
    most = median(ratio, rounds);
    printf("%-22s %10.2f %10.2f %7.2f", row->name, median(ran, rounds) / (double)items,
           median(limit, rounds) / (double)items, most);
    if (row->most > 0)
        printf("  %s %.1f", most <= row->most ? "<=" : "> ", row->most);
    printf("\n");
    fflush(stdout);
    return true;
}

static int once(const char *what, const char *name)
{
    for (size_t i = 0; i < bench_row_count(); i++) {
        const struct bench_row *row = bench_row(i);
        struct bench *b;
        uint64_t items = 1;

        if (strcmp(row->name, name))
            continue;
        b = bench_open(row, true);
        if (!b)
            return 1;
        bench_prepare(b);
        if (!strcmp(what, "run"))
            items = bench_run(b);
        printf("%llu\n", (unsigned long long)items);
        bench_close(b);
        return items ? 0 : 1;
    }
    fprintf(stderr, "no row %s\n", name);
    return 2;
}

int main(int argc, char **argv)
{
    unsigned long rounds = 25;
    int first = 1;
    bool ok = true;

    if (argc == 4 && !strcmp(argv[1], "--once"))
        return once(argv[2], argv[3]);
    if (argc > 2 && !strcmp(argv[1], "--rounds")) {
        rounds = strtoul(argv[2], NULL, 10);
        first = 3;
    }
    if (rounds < 1 || rounds > MOST_ROUNDS) {
        fprintf(stderr, "rounds: 1 to %d\n", MOST_ROUNDS);
        return 2;
    }
    printf("%-22s %10s %10s %7s  medians, ns for each piece of work\n", "row", "ns", "limit", "ratio");
    for (size_t i = 0; i < bench_row_count(); i++)
        if (is_asked(bench_row(i), argv + first, argc - first))
            ok = measure(bench_row(i), rounds) && ok;
    return ok ? 0 : 1;
}
