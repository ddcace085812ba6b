/* SPDX-License-Identifier: BSD-2-Clause */
/* test_name - the names of ports and monitors against tests/vectors/names.json, the path of which is the argument */
#include "internal.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>

static const char *field(json_t *vector, const char *key)
{
    return json_string_value(json_object_get(vector, key));
}

/* True when a name came out as the vector has it, or was refused as it has it. */
static bool check_result(json_t *vector, int rc, const struct vale_name *name, const struct vale_error *err)
{
    json_t *ok = json_object_get(vector, "ok");

    if (ok != NULL && json_is_false(ok)) {
        return rc == -EINVAL && err->code == EINVAL && err->text[0] != '\0' && strchr(err->text, '\n') == NULL;
    }
    return rc >= 0 && strcmp(name->sw, field(vector, "switch")) == 0 && strcmp(name->port, field(vector, "port")) == 0 &&
           strcmp(name->full, field(vector, "full")) == 0;
}

/* True when the vector holds. */
static bool check(json_t *vector)
{
    struct vale_error err = {0};
    struct vale_name name;
    int rc = vale_name_parse(field(vector, "text"), &name, &err);

    return check_result(vector, rc, &name, &err);
}

static bool check_monitor(json_t *vector)
{
    unsigned int flags = (json_is_true(json_object_get(vector, "rx")) ? VALE_OPEN_MONITOR_RX : 0) |
                         (json_is_true(json_object_get(vector, "tx")) ? VALE_OPEN_MONITOR_TX : 0);
    struct vale_error err = {0};
    struct vale_name name;
    int rc = vale_name_parse_monitor(field(vector, "text"), &name, &err);

    return check_result(vector, rc, &name, &err) && (rc < 0 || (unsigned int)rc == flags);
}

static int check_all(json_t *vectors, bool (*holds)(json_t *vector))
{
    json_t *vector;
    size_t i;
    int failed = 0;

    json_array_foreach(vectors, i, vector) {
        if (!holds(vector)) {
            fprintf(stderr, "vector %zu (\"%s\") does not hold\n", i, field(vector, "text"));
            failed++;
        }
    }
    printf("%zu vectors, %d failed\n", json_array_size(vectors), failed);
    return failed != 0 || i == 0;
}

int main(int argc, char **argv)
{
    json_error_t error;
    json_t *root;
    int failed;

    root = argc == 2 ? json_load_file(argv[1], 0, &error) : NULL;
    if (root == NULL) {
        fprintf(stderr, "usage: test_name names.json\n");
        return 2;
    }
    failed = check_all(json_object_get(root, "vectors"), check) | check_all(json_object_get(root, "monitors"), check_monitor);
    json_decref(root);
    return failed;
}
