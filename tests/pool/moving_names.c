/* getaddrinfo as a test's file of names has it, for every library of a process: LD_PRELOAD.

   Each line of the file that UNBROKEN_TEST_NAMES names is "host answer …": IPv4 addresses, or one
   negative number (EAI_NONAME is -2), or "hang". Other hosts are the system's. "#host" lines count
   nothing. Each lookup of such a host is noted as one byte in "<file>.asked". */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int (*lookup)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

static int answer_of(const char *host, char *line, size_t size) {
    const char *path = getenv("UNBROKEN_TEST_NAMES");
    FILE *file = path ? fopen(path, "re") : NULL;
    size_t length = strlen(host);
    int found = 0;
    while (file && !found && fgets(line, (int)size, file))
        found = strncmp(line, host, length) == 0 && line[length] == ' ';
    if (file) fclose(file);
    if (found) {
        char asked[4096];
        snprintf(asked, sizeof asked, "%s.asked", path);
        int fd = open(asked, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (fd >= 0) {
            if (write(fd, ".", 1) < 0) found = found;
            close(fd);
        }
        memmove(line, line + length + 1, strlen(line + length + 1) + 1);
    }
    return found;
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
                struct addrinfo **result) {
    lookup real = (lookup)dlsym(RTLD_NEXT, "getaddrinfo");
    char line[4096];
    if (!host || !answer_of(host, line, sizeof line)) return real(host, service, hints, result);
    struct addrinfo *first = NULL, **end = &first;
    char *rest = NULL;
    for (char *word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
        if (strcmp(word, "hang") == 0) {
            while (answer_of(host, line, sizeof line) && strncmp(line, "hang", 4) == 0)
                usleep(20000);
            return getaddrinfo(host, service, hints, result);
        }
        if (word[0] == '-') return atoi(word);
        int failed = real(word, service, hints, end);
        if (failed) return failed;
        while (*end) end = &(*end)->ai_next;
    }
    *result = first;
    return first ? 0 : EAI_NONAME;
}
