/* SPDX-License-Identifier: BSD-2-Clause */
/* Names of ports: what is accepted is canonical, and means the same when it is read again. */
#include "fuzz.h"

#include <libvale.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    struct vale_name name, again;
    struct vale_error err;

    memcpy(text, data, size);
    text[size] = '\0';
    if (vale_name_parse(text, &name, &err) == 0) {
        MUST(strncmp(name.sw, "vale", 4) == 0 && name.port[0] && !strchr(name.full, '-'));
        MUST(strlen(name.full) == strlen(name.sw) + 1 + strlen(name.port));
        MUST(vale_name_parse(name.full, &again, &err) == 0 && memcmp(&name, &again, sizeof(name)) == 0);
    } else {
        MUST(memchr(err.text, '\0', sizeof(err.text)));
    }
    /* Of what can be monitored, only a whole switch is not the name of a port. */
    if (vale_name_parse_monitored(text, &name, &err) == 0)
        MUST(name.port[0] == '\0' || vale_name_parse(text, &again, &err) == 0);
    free(text);
    return 0;
}
