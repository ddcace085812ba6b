/* SPDX-License-Identifier: BSD-2-Clause */
/* test_name - vale_name_parse() against tests/vectors/names.json, the path of which is the argument */
#include <errno.h>
#include <jansson.h>
#include <libvale.h>
#include <stdio.h>
#include <string.h>

static const char *field(json_t *vector, const char *key)
{
    return json_string_value(json_object_get(vector, key));
}

/* True when the vector holds. */
static bool check(json_t *vector)
{
    const char *text = field(vector, "text");
    json_t *ok = json_object_get(vector, "ok");
    struct vale_error err = {0};
    struct vale_name name;
    int rc = vale_name_parse(text, &name, &err);

    if (ok != NULL && json_is_false(ok)) {
        return rc == -EINVAL && err.code == EINVAL && err.text[0] != '\0' && strchr(err.text, '\n') == NULL;
    }
    return rc == 0 && strcmp(name.sw, field(vector, "switch")) == 0 && strcmp(name.port, field(vector, "port")) == 0 &&
           strcmp(name.full, field(vector, "full")) == 0;
}

int main(int argc, char **argv)
{
    json_error_t error;
    json_t *root, *vectors, *vector;
    size_t i;
    int failed = 0;

    root = argc == 2 ? json_load_file(argv[1], 0, &error) : NULL;
    if (root == NULL) {
        fprintf(stderr, "usage: test_name names.json\n");
        return 2;
    }
    vectors = json_object_get(root, "vectors");
    json_array_foreach(vectors, i, vector) {
        if (!check(vector)) {
            fprintf(stderr, "vector %zu (\"%s\") does not hold\n", i, field(vector, "text"));
            failed++;
        }
    }
    printf("%zu vectors, %d failed\n", json_array_size(vectors), failed);
    json_decref(root);
    return failed != 0 || i == 0;
}
