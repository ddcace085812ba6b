/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * micro-identity FILE: give this machine its identity.
 *
 * FILE is the JSON object that the launcher of the guest passed by fw_cfg (opt/org.vale/guest).
 * Host name, SSH keys and the names of NICs that want DHCP go where the rest of the system
 * looks for them; addresses and the like come out as lines for `ip -batch`, because one process
 * that sets everything costs the least boot time. What is absent from the object is left alone,
 * so an object with nothing but a NIC serves for one that was plugged in later; `-` is its
 * standard input then. Exit status 1 says that a NIC is not there (yet).
 */
#include <dirent.h>
#include <err.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <jansson.h>

#define AUTHORIZED_KEYS "/root/.ssh/authorized_keys"
#define HOST_KEY        "/etc/dropbear/host_key.openssh"
#define DHCP4_LIST      "/run/dhcp4"

/* A NIC of the object that is there. */
struct nic {
    json_t *wanted;
    const char *name;          /* that it shall have */
    char device[NAME_MAX + 1]; /* name that it has */
};

/* Append to a file, and set its mode unless that is 0: files of /proc refuse that. */
static void write_file(const char *path, mode_t mode, const char *text, const char *end)
{
    FILE *file = fopen(path, "a");

    if (!file || (mode && fchmod(fileno(file), mode) < 0) || fprintf(file, "%s%s", text, end) < 0 ||
        fclose(file) != 0) {
        err(1, "%s", path);
    }
}

/* A member that goes into a line of `ip -batch`: one word, or the line would say something else. */
static const char *word(json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));

    if (text && strpbrk(text, " \t\r\n\"'\\;#")) {
        errx(1, "identity: %s \"%s\" is not one word", key, text);
    }
    return text;
}

static int mac_of(const char *device, char *mac, size_t size)
{
    char path[300];
    FILE *file;

    snprintf(path, sizeof(path), "/sys/class/net/%s/address", device);
    file = fopen(path, "r");
    if (!file) {
        return -1;
    }
    if (!fgets(mac, size, file)) {
        mac[0] = '\0';
    }
    fclose(file);
    mac[strcspn(mac, "\n")] = '\0';
    return 0;
}

/* Find the network device that has this MAC now; the names that the kernel gave mean nothing. */
static int find_device(const char *mac, char *device, size_t size)
{
    DIR *dir = opendir("/sys/class/net");
    struct dirent *entry;
    char address[64];
    int found = -1;

    while (dir && found < 0 && (entry = readdir(dir))) {
        if (entry->d_name[0] != '.' && mac_of(entry->d_name, address, sizeof(address)) == 0 &&
            strcasecmp(address, mac) == 0) {
            snprintf(device, size, "%s", entry->d_name);
            found = 0;
        }
    }
    if (dir) {
        closedir(dir);
    }
    return found;
}

static void set_ipv6(const char *device, const char *key, const char *value)
{
    char path[512];

    snprintf(path, sizeof(path), "/proc/sys/net/ipv6/conf/%s/%s", device, key);
    write_file(path, 0, value, "\n");
}

/* IPv6 with the given addresses only: no link-local address, nothing learned, nothing asked. */
static void allow_ipv6(const char *device)
{
    set_ipv6(device, "addr_gen_mode", "1");
    set_ipv6(device, "accept_ra", "0");
    set_ipv6(device, "accept_dad", "0");
    set_ipv6(device, "router_solicitations", "0");
    set_ipv6(device, "disable_ipv6", "0");
}

/* Two devices cannot have one name, so who has the name that another one wants leaves it first. */
static void step_aside(struct nic *nics, size_t count)
{
    size_t i, j;

    for (i = 0; i < count; i++) {
        for (j = 0; j < count && strcmp(nics[j].name, nics[i].device) != 0; j++) {
        }
        if (j < count && strcmp(nics[i].name, nics[i].device) != 0) {
            printf("link set dev %s name aside%zu\n", nics[i].device, i);
            snprintf(nics[i].device, sizeof(nics[i].device), "aside%zu", i);
        }
    }
}

static void emit_nic(const struct nic *nic)
{
    const char *name = nic->name;
    json_t *item;
    size_t i;

    if (strcmp(name, nic->device) != 0) {
        printf("link set dev %s name %s\n", nic->device, name);
    }
    if (json_object_get(nic->wanted, "mtu")) {
        printf("link set dev %s mtu %lld\n", name,
               (long long)json_integer_value(json_object_get(nic->wanted, "mtu")));
    }
    printf("link set dev %s up\n", name);
    json_array_foreach(json_object_get(nic->wanted, "addresses"), i, item) {
        printf("addr add %s dev %s\n", json_string_value(item), name);
    }
    json_array_foreach(json_object_get(nic->wanted, "neighbours"), i, item) {
        const char *address = word(item, "address"), *mac = word(item, "mac");

        if (address && mac) {
            printf("neigh replace %s lladdr %s dev %s nud permanent\n", address, mac, name);
        }
    }
}

static void check_addresses(json_t *nic, const char *device)
{
    json_t *item;
    size_t i;

    json_array_foreach(json_object_get(nic, "addresses"), i, item) {
        const char *address = json_string_value(item);

        if (!address || address[strspn(address, "0123456789abcdefABCDEF.:/")] != '\0') {
            errx(1, "identity: addresses of %s: \"%s\" is not an IP address with prefix length",
                 device, address ? address : "(no string)");
        }
        if (strchr(address, ':')) {
            allow_ipv6(device);
        }
    }
}

static int prepare_nic(json_t *wanted, struct nic *nic)
{
    const char *mac = word(wanted, "mac"), *name = word(wanted, "name");

    if (!mac || find_device(mac, nic->device, sizeof(nic->device)) < 0) {
        warnx("identity: no NIC has MAC %s", mac ? mac : "(none given)");
        return -1;
    }
    check_addresses(wanted, nic->device);
    nic->wanted = wanted;
    nic->name = name ? name : strdup(nic->device); /* device changes while it steps aside */
    if (json_is_true(json_object_get(wanted, "dhcp4"))) {
        write_file(DHCP4_LIST, 0644, nic->name, "\n");
    }
    return 0;
}

static int apply_nics(json_t *wanted)
{
    struct nic *nics = calloc(json_array_size(wanted) + 1, sizeof(*nics));
    size_t i, count = 0;
    json_t *item;

    json_array_foreach(wanted, i, item) {
        count += prepare_nic(item, &nics[count]) == 0;
    }
    step_aside(nics, count);
    for (i = 0; i < count; i++) {
        emit_nic(&nics[i]);
    }
    return count < json_array_size(wanted) ? -1 : 0;
}

static void apply_ssh(json_t *identity)
{
    const char *host_key = json_string_value(json_object_get(identity, "host_key"));
    json_t *item;
    size_t i;

    json_array_foreach(json_object_get(identity, "authorized_keys"), i, item) {
        if (json_is_string(item)) {
            mkdir("/root/.ssh", 0700);
            write_file(AUTHORIZED_KEYS, 0600, json_string_value(item), "\n");
        }
    }
    if (host_key) {
        write_file(HOST_KEY, 0600, host_key, "");
    }
}

int main(int argc, char **argv)
{
    json_error_t error;
    json_t *identity;
    const char *hostname;

    if (argc != 2) {
        fprintf(stderr, "usage: micro-identity FILE|-\n");
        return 2;
    }
    identity = strcmp(argv[1], "-") == 0 ? json_loadf(stdin, 0, &error)
                                         : json_load_file(argv[1], 0, &error);
    if (!json_is_object(identity)) {
        errx(1, "identity: %s is not a JSON object: %s", argv[1], error.text);
    }
    hostname = json_string_value(json_object_get(identity, "hostname"));
    if (hostname && sethostname(hostname, strlen(hostname)) < 0) {
        warn("identity: hostname \"%s\"", hostname);
    }
    apply_ssh(identity);
    return apply_nics(json_object_get(identity, "nics")) < 0;
}
